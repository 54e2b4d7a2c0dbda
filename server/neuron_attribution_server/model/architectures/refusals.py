"""Why architectures are refused that are not merely unknown: what the method assumes and they do not have."""

from __future__ import annotations

_SEVERAL_STREAMS = "it mixes several residual streams ({}), so that what a layer writes is not simply added"
_RECURRENT = "its layers are recurrent ({}), and none has attention"
_READ_ONLY = "what its shared attention computes is read by its state spaces, and never added to the residual stream"
_NORMED_STREAM = "it norms the residual stream itself after every block, so that writes do not add up"

REFUSED: dict[str, str] = {
    "gemma3n": _SEVERAL_STREAMS.format("AltUp"),
    "gemma3n_text": _SEVERAL_STREAMS.format("AltUp"),
    "deepseek_v4": _SEVERAL_STREAMS.format("hyper-connections"),
    "hy_v4": _SEVERAL_STREAMS.format("hyper-connections"),
    "qwen4_exp": _SEVERAL_STREAMS.format("hyper-connections"),
    "qwen4_exp_text": _SEVERAL_STREAMS.format("hyper-connections"),
    "openai-gpt": _NORMED_STREAM,
    "bart": _NORMED_STREAM,
    "minimax": _NORMED_STREAM,
    "zamba": _READ_ONLY,
    "zamba2": _READ_ONLY,
    "gemma4": "it scales the residual stream in every layer and adds an input of its own to each",
    "gemma4_text": "it scales the residual stream in every layer and adds an input of its own to each",
    "diffllama": "its heads subtract two attention patterns from one another and norm the result",
    "bitnet": "it norms the neurons themselves before the output projections",
    "llama4": "its router weighs what an expert reads, not what it writes",
    "llama4_text": "its router weighs what an expert reads, not what it writes",
    "mamba": _RECURRENT.format("state spaces"),
    "mamba2": _RECURRENT.format("state spaces"),
    "falcon_mamba": _RECURRENT.format("state spaces"),
    "rwkv": _RECURRENT.format("RWKV"),
    "xlstm": _RECURRENT.format("xLSTM"),
}
UNKNOWN = "nobody has described its modules yet"


def refusal(family: str) -> str:
    """Why models of a family that is not supported are refused."""
    return REFUSED.get(family, UNKNOWN)
