"""Multi-head latent attention: keys and values are made from a compressed state."""

from __future__ import annotations

from dataclasses import replace

from neuron_attribution_server.model.architectures.groups.experts import WITH_SHARED_EXPERTS
from neuron_attribution_server.model.architectures.groups.llama import LLAMA
from neuron_attribution_server.model.architectures.spec import Layout, Rows

VALUE = Rows("self_attn.kv_b_proj", Layout.LATENT)
LATENT = "self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm"

YOUTU = replace(LLAMA, family="youtu", value=VALUE, value_latent=LATENT)

DEEPSEEK = replace(WITH_SHARED_EXPERTS, family="deepseek_v3", value=VALUE, value_latent=LATENT)

LATENT_ATTENTION_FAMILIES = (
    YOUTU,
    DEEPSEEK,
    *(replace(DEEPSEEK, family=family) for family in ("deepseek_v2", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa")),
    replace(DEEPSEEK, family="axk1", ffn_write="mlp.post_mlp_layernorm"),
    replace(YOUTU, family="minicpm3", residual_multiplier="residual_scale", logit_divisor="logits_scaling"),
)
