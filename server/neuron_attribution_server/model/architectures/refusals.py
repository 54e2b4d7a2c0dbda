"""Why architectures are refused that are not merely unknown: what the method assumes and they do not have."""

from __future__ import annotations

_SEVERAL_STREAMS = "it mixes several residual streams ({}), so that what a layer writes is not simply added"
_RECURRENT = "its layers are recurrent ({}), and none has attention"
_READ_ONLY = "what its shared attention computes is read by its state spaces, and never added to the residual stream"
_NORMED_STREAM = "it norms the residual stream itself after every block, so that writes do not add up"
_SCALED = "it scales the residual stream by a learned vector in every layer"
_CONVOLVED_WRITES = "short convolutions mix what its attention and its FFN write over neighbouring positions"
_UNEVEN_HEADS = "its layers have different numbers of heads"
_ALTUP = (
    "it mixes several residual streams (AltUp), and what is written to all but one of them reaches the output through "
    "a matrix of its own"
)

_TRANSFORMED = "a network stands between its final norm and the unembedding"
_HALF = "it is the decoder of a model that also encodes, and continues what that encoder reads"
_DRAFT = "it drafts for another model, whose states and values it reads"
_SOUNDS = "it predicts several streams of sounds at once, each by an unembedding of its own"

REFUSED: dict[str, str] = {
    "gemma3n": _ALTUP,
    "gemma3n_text": _ALTUP,
    "deepseek_v4": "every layer reads another mixture of its residual streams (hyper-connections), and its heads mix "
    "compressed blocks of positions and turn the result by the position that reads, so that their neurons write no "
    "fixed vectors",
    "hy_v4": _SEVERAL_STREAMS.format("hyper-connections"),
    "qwen4_exp": _SEVERAL_STREAMS.format("hyper-connections"),
    "qwen4_exp_text": _SEVERAL_STREAMS.format("hyper-connections"),
    "reformer": _SEVERAL_STREAMS.format("reversible layers"),
    **dict.fromkeys(
        (
            "openai-gpt",
            "minimax",
            "bart",
            "bert",
            "bert-generation",
            "big_bird",
            "blenderbot-small",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "git",
            "marian",
            "mvp",
            "plbart",
            "prophetnet",
            "rembert",
            "roberta",
            "roc_bert",
            "roformer",
            "trocr",
            "xlm",
            "xlm-roberta",
            "xlnet",
            "xmod",
        ),
        _NORMED_STREAM,
    ),
    **dict.fromkeys(("bigbird_pegasus", "blenderbot", "mbart", "pegasus", "whisper"), _HALF),
    **dict.fromkeys(
        ("megatron-bert", "modernbert-decoder", "roberta-prelayernorm", "xlm-roberta-xl"),
        _TRANSFORMED,
    ),
    **dict.fromkeys(("musicgen", "musicgen_melody"), _SOUNDS),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), _DRAFT),
    "zamba": _READ_ONLY,
    "zamba2": _READ_ONLY,
    "doge": _SCALED,
    "zaya": _SCALED,
    "hrm_text": "it runs its layers again and again, over sums of normed states",
    "longcat_flash": "its experts read before a layer's second attention and write after it, and some return what "
    "they read",
    "jetmoe": "every token chooses its own output projections of attention, so that heads have no rows of their own",
    "axk2": "its norms are multiplied by a gate of what they norm, so that no fixed weights read the residual stream",
    "blt": "it is three transformers, of bytes and of patches of bytes, without one residual stream",
    "inkling_text": _CONVOLVED_WRITES,
    "inkling2_text": _CONVOLVED_WRITES,
    "dots3_note": _UNEVEN_HEADS,
    "dots3_note_text": _UNEVEN_HEADS,
    "diffllama": "its heads subtract two attention patterns from one another and norm the result",
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
