"""Why architectures are refused that are not merely unknown: what the method assumes and they do not have."""

from __future__ import annotations

_SEVERAL_STREAMS = "it mixes several residual streams ({}), so that what a layer writes is not simply added"
_NO_ATTENTION_WEIGHTS = "some of its layers are recurrent ({}) and have no attention weights to attribute to positions"
_GATED_ATTENTION = "its attention multiplies what heads mix by a gate, which its value neurons do not contain"
_NORMED_STREAM = "it norms the residual stream itself after every block, so that writes do not add up"

_ALTUP = (
    "it mixes several residual streams (AltUp), and what is written to all but one of them reaches the output through "
    "a matrix of its own"
)

REFUSED: dict[str, str] = {
    "gemma3n": _ALTUP,
    "gemma3n_text": _ALTUP,
    "deepseek_v4": "every layer reads another mixture of its residual streams (hyper-connections), and its heads mix "
    "compressed blocks of positions and turn the result by the position that reads, so that their neurons write no "
    "fixed vectors",
    "hy_v4": _SEVERAL_STREAMS.format("hyper-connections"),
    "qwen4_exp": _SEVERAL_STREAMS.format("hyper-connections"),
    "qwen4_exp_text": _SEVERAL_STREAMS.format("hyper-connections"),
    "openai-gpt": _NORMED_STREAM,
    "bart": _NORMED_STREAM,
    "diffllama": "its heads subtract two attention patterns from one another and norm the result",
    "bitnet": "it norms the neurons themselves before the output projections",
    "afmoe": _GATED_ATTENTION,
    "laguna": _GATED_ATTENTION,
    "mamba": _NO_ATTENTION_WEIGHTS.format("state spaces"),
    "mamba2": _NO_ATTENTION_WEIGHTS.format("state spaces"),
    "falcon_mamba": _NO_ATTENTION_WEIGHTS.format("state spaces"),
    "falcon_h1": _NO_ATTENTION_WEIGHTS.format("state spaces"),
    "bamba": _NO_ATTENTION_WEIGHTS.format("state spaces"),
    "jamba": _NO_ATTENTION_WEIGHTS.format("state spaces"),
    "zamba": _NO_ATTENTION_WEIGHTS.format("state spaces"),
    "zamba2": _NO_ATTENTION_WEIGHTS.format("state spaces"),
    "nemotron_h": _NO_ATTENTION_WEIGHTS.format("state spaces"),
    "granitemoehybrid": _NO_ATTENTION_WEIGHTS.format("state spaces"),
    "rwkv": _NO_ATTENTION_WEIGHTS.format("RWKV"),
    "xlstm": _NO_ATTENTION_WEIGHTS.format("xLSTM"),
    "recurrent_gemma": _NO_ATTENTION_WEIGHTS.format("gated linear recurrences"),
    "lfm2": _NO_ATTENTION_WEIGHTS.format("short convolutions"),
    "lfm2_moe": _NO_ATTENTION_WEIGHTS.format("short convolutions"),
    "qwen3_next": _NO_ATTENTION_WEIGHTS.format("gated delta networks"),
    "qwen3_5": _NO_ATTENTION_WEIGHTS.format("gated delta networks"),
    "qwen3_5_text": _NO_ATTENTION_WEIGHTS.format("gated delta networks"),
    "qwen3_5_moe": _NO_ATTENTION_WEIGHTS.format("gated delta networks"),
    "qwen3_5_moe_text": _NO_ATTENTION_WEIGHTS.format("gated delta networks"),
    "olmo_hybrid": _NO_ATTENTION_WEIGHTS.format("gated delta networks"),
    "kimi_linear": _NO_ATTENTION_WEIGHTS.format("linear attention"),
    "minimax": _NO_ATTENTION_WEIGHTS.format("lightning attention"),
}
UNKNOWN = "nobody has described its modules yet"


def refusal(family: str) -> str:
    """Why models of a family that is not supported are refused."""
    return REFUSED.get(family, UNKNOWN)
