"""The published notebooks' procedure: everything materialised layer by layer, then Python lists.

Per layer, all neurons' vectors are added to the base and read through the whole unembedding, [neurons, V]; then
log(softmax), the target's column, one `.item()` per neuron into a list of names and scores, and one sort. Rows
are taken in groups that fit memory. A sample of rows of one layer is measured, with the sort of a whole list.
"""

import torch

from benchmarks.states import record
from benchmarks.timing import timed

ROWS = 256


def sampled_seconds(model, ids, target, layer):
    """The time of the whole procedure on one prompt, from rows of each kind in one layer."""
    states, forward = timed(lambda: record(model, ids))
    module, layers = model.model.layers[layer], len(model.model.layers)
    kinds = (
        (module.mlp.down_proj, states.ffn[layer], states.residuals[layer]),
        (module.self_attn.o_proj, states.attention[layer], states.inputs[layer]),
    )
    return forward + sum(_kind(model, states.scale, target, layers, *kind) for kind in kinds)


def _kind(model, scale, target, layers, module, coefficients, base):
    units, positions = coefficients.shape
    rows = min(ROWS, units)
    found, seconds = timed(lambda: _rows(model, scale, target, module.weight.T[:rows], coefficients[:rows, -1], base))
    total = layers * units * positions
    every = (found * (total // rows + 1))[:total]
    _, sorting = timed(lambda: sorted(every, key=lambda each: each[-1])[::-1])
    return seconds * total / rows + sorting


@torch.inference_mode()
def _rows(model, scale, target, subvalues, coefficients, base):
    gamma, unembedding = model.model.norm.weight.float() / scale, model.lm_head.weight.float().T
    origin = torch.log(torch.softmax((base * gamma) @ unembedding, -1))[target]
    logits = ((subvalues.float() * coefficients[:, None] + base) * gamma) @ unembedding
    increases = torch.log(torch.softmax(logits, -1)[:, target]) - origin
    return [[f"layer_{index}", increase.item()] for index, increase in enumerate(increases)]
