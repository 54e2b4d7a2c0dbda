"""The supported architectures by their `model_type`, from the groups that share most of their facts."""

from __future__ import annotations

from neuron_attribution_server.model.architectures.groups.experts import EXPERT_FAMILIES
from neuron_attribution_server.model.architectures.groups.gpt import GPT_FAMILIES
from neuron_attribution_server.model.architectures.groups.latent_attention import LATENT_ATTENTION_FAMILIES
from neuron_attribution_server.model.architectures.groups.layer_norm import LAYER_NORM_FAMILIES
from neuron_attribution_server.model.architectures.groups.llama import LLAMA_FAMILIES
from neuron_attribution_server.model.architectures.groups.opt import OPT_FAMILIES
from neuron_attribution_server.model.architectures.groups.recurrent import RECURRENT_FAMILIES
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec

_GROUPS = (
    LLAMA_FAMILIES,
    LAYER_NORM_FAMILIES,
    GPT_FAMILIES,
    OPT_FAMILIES,
    EXPERT_FAMILIES,
    LATENT_ATTENTION_FAMILIES,
    RECURRENT_FAMILIES,
)

FAMILIES: dict[str, ArchitectureSpec] = {spec.family: spec for group in _GROUPS for spec in group}
