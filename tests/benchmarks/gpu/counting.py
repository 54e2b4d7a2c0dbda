"""Operations and waits of a batch, counted without a GPU, and the time that a GPU is predicted to take for them."""

from unittest.mock import patch

import torch
from neuron_attribution_server.model.attribution import host
from neuron_attribution_server.model.loading.models import engine_from
from reference.counted_operations import CountedOperations
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import markdown
from benchmarks.subject import SHAPES, task
from benchmarks.timing import progress

OPERATION, WAIT = 6e-6, 20e-6
"""Seconds for which the host is busy with one launch, and for which it waits for one result."""
OPERATIONS_A_SECOND, BYTES_A_SECOND = 989e12 / 2, 4.8e12 / 2
"""Half of what NVIDIA's data sheet of the H200 says of bfloat16 and of memory."""
TOKENS, TOP_K = 20, 10
BATCHES = (1, 4, 16)
PREDICTED_TOKENS = 128
NAMES = {"llama-7b": "Llama-7B", "llama-3-8b": "Llama-3-8B"}


def measure(layers):
    """By layers and batch: operations of the plain forward pass, operations and waits of an explanation.

    The engine takes the CPU for a device, so that it goes the ways that it goes on a GPU.
    """
    with patch.object(host, "HOST", "none"):
        return {(depth, batch): found for depth in layers for batch, found in _counts(depth).items()}


def _counts(layers):
    progress(f"counts of {layers} layers")
    torch.manual_seed(0)
    counted = CountedOperations()
    with counted:
        model = LlamaForCausalLM(_config(layers)).eval()
        plain = LlamaForCausalLM(_config(layers)).eval()
        engine = engine_from(model)
        _explain(engine, 1)
    found = {}
    for batch in BATCHES:
        counted.reset()
        with counted, torch.inference_mode():
            plain(input_ids=torch.tensor(_prompts(batch), device="cpu"), use_cache=False)
        forward = counted.operations
        counted.reset()
        with counted:
            _explain(engine, batch)
        found[batch] = (forward, counted.operations, counted.waits)
    return found


def _config(layers):
    """Small: the numbers do not depend on the sizes of the tensors. Weights are large enough for scores that differ."""
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=64,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=172,
        vocab_size=997,
        initializer_range=64**-0.5,
        bos_token_id=None,
        eos_token_id=None,
    )


def _explain(engine, batch):
    for outcome in engine.run([task(prompt, top_k=TOP_K) for prompt in _prompts(batch)]):
        if isinstance(outcome, Exception):
            raise outcome


def _prompts(batch):
    return [list(range(5 + number, 5 + number + TOKENS)) for number in range(batch)]


def overhead(operations, waits):
    """Seconds that the host needs to launch so many operations and to wait so often."""
    return OPERATION * operations + WAIT * waits


def report(found):
    rows = [
        [layers, batch, f"{forward:,}", f"{operations:,}", f"{waits:,}", f"{1000 * overhead(operations, waits):.1f} ms"]
        for (layers, batch), (forward, operations, waits) in found.items()
    ]
    header = ["layers", "batch", "plain forward: operations", "explanation: operations", "waits", "predicted overhead"]
    return markdown.section(
        "Counted operations",
        f"*PyTorch {torch.__version__}; random Llama, d 64, 8 heads, FFN 172, vocabulary 997; one explained token of "
        f"{TOKENS}, all parts, top {TOP_K}; counted on a CPU*",
        "Every operation of PyTorch but views and allocations, as a stand-in for a kernel's launch, and every time the "
        "host needs a result before it can go on. The engine goes the ways that it goes on a GPU. "
        f"**The overhead is predicted, not measured:** {1e6 * OPERATION:.0f} µs an operation and "
        f"{1e6 * WAIT:.0f} µs a wait.",
        markdown.table(header, rows),
    )


def report_prediction(found):
    """What the counts of the deepest model mean for the shapes that are measured."""
    deepest = max(layers for layers, _ in found)
    most = max(batch for _, batch in found)
    rows = []
    for name, title in NAMES.items():
        times = {batch: _times(name, batch, found[deepest, batch]) for layers, batch in found if layers == deepest}
        rows += [
            [title, batch, f"{1000 * plain:.1f} ms", f"{1000 * whole:.1f} ms", f"{whole / plain:.1f}"]
            for batch, (plain, whole) in times.items()
        ]
        gains = [f"{most * alone / together:.1f} x" for alone, together in zip(times[1], times[most], strict=True)]
        rows.append([title, f"{most}, requests a second against 1", *gains, ""])
    return markdown.section(
        "Prediction",
        f"*A GPU with half of an H200's data sheet: {OPERATIONS_A_SECOND / 1e12:.0f} TFLOP/s in bfloat16, "
        f"{BYTES_A_SECOND / 1e12:.1f} TB/s; {PREDICTED_TOKENS} tokens; counts of {deepest} layers as above*",
        "**Predicted, not measured.** The plain forward pass takes what its products, its weights or its launches "
        "take, whichever is longest. An explanation takes that and the overhead of its other operations and its "
        "waits; the arithmetic of scoring is left out, so it is the least that it takes.",
        markdown.table(["model", "batch", "plain forward", "explanation", "ratio"], rows),
    )


def _times(name, batch, counts):
    """Seconds of the plain forward pass and of the explanation."""
    forward, operations, waits = counts
    parameters = _parameters(SHAPES[name])
    products = 2 * parameters * batch * PREDICTED_TOKENS / OPERATIONS_A_SECOND
    plain = max(products, 2 * parameters / BYTES_A_SECOND, overhead(forward, 0))
    return plain, plain + overhead(operations - forward, waits)


def _parameters(shape):
    """Those of the matrices that every token goes through."""
    d, heads = shape["hidden_size"], shape["num_attention_heads"]
    attention = 2 * d * d * (1 + shape["num_key_value_heads"] / heads)
    layer = attention + 3 * d * shape["intermediate_size"]
    return shape["num_hidden_layers"] * layer + d * shape["vocab_size"]
