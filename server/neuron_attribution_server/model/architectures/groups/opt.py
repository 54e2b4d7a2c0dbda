"""OPT and its relatives: the feed-forward network lies on the layer itself."""

from __future__ import annotations

from dataclasses import replace

from neuron_attribution_server.model.architectures.groups.feed_forwards import ON_THE_LAYER
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec, NormKind, Rows

OPT = ArchitectureSpec(
    family="opt",
    layers="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    norm=NormKind.LAYER,
    attention_norm="self_attn_layer_norm",
    attention_output="self_attn.out_proj",
    value=Rows("self_attn.v_proj"),
    ffn_norm="final_layer_norm",
    ffn=ON_THE_LAYER,
)

XGLM = replace(OPT, family="xglm", layers="model.layers", final_norm="model.layer_norm", attention_weights="self_attn")

OPT_FAMILIES = (
    OPT,
    XGLM,
    replace(OPT, family="biogpt", layers="biogpt.layers", final_norm="biogpt.layer_norm"),
)
