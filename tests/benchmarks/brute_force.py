"""The rankings by scoring everything, in chunks that stay in the cache.

With p the probabilities at the base and D what a neuron adds to the logits, its score is D[target] - log(p . exp D): a
product with the unembedding and one exponential per token of the vocabulary. An attention neuron is one entry per
source position. `shared` computes the product once for all positions, which differ by a factor only; otherwise every
entry has its own, as in the published code.
"""

from itertools import product

import torch

from benchmarks.states import record
from benchmarks.timing import timed

UNITS = 192
BLOCK = 4096
KINDS = ("ffn", "attention")


class BruteForce:
    """One prompt, forward pass included."""

    @torch.inference_mode()
    def __init__(self, model, ids, target, shared=True):
        self._shared = shared
        self._states = record(model, ids)
        self._weight = model.lm_head.weight.float()
        self._gamma = model.model.norm.weight.float()
        self._target = target
        self._layers = model.model.layers
        bases = {"ffn": self._states.residuals, "attention": self._states.inputs}
        self._probabilities = {kind: self._softmax(torch.stack(bases[kind])) for kind in KINDS}
        self.chunks = {kind: self._chunks(kind) for kind in KINDS}

    def everything(self):
        """The scores of every neuron: FFN [L, N], attention [L, H * D, T]."""
        return {
            kind: torch.cat([self.score(kind, *chunk) for chunk in self.chunks[kind]]).unflatten(
                0, (len(self._layers), -1)
            )
            for kind in KINDS
        }

    def sampled_seconds(self, count):
        """The time that everything would take, from `count` chunks of each kind, evenly chosen."""
        return sum(self._sampled(kind, count) for kind in KINDS)

    @torch.inference_mode()
    def score(self, kind, layer, start):
        """Scores of one chunk, [n, T or 1]."""
        units = slice(start, start + UNITS)
        coefficients = self._coefficients(kind, layer)[units]
        vectors = self._subvalues(kind, layer)[units].float() * self._gamma / self._states.scale
        if self._shared:
            return self._scores(kind, layer, vectors, coefficients)
        entries = (vectors[:, None] * coefficients[:, :, None]).flatten(0, 1).split(UNITS)
        scores = [self._scores(kind, layer, rows, rows.new_ones(len(rows), 1)) for rows in entries]
        return torch.cat(scores).view(coefficients.shape)

    def _scores(self, kind, layer, vectors, coefficients):
        totals = torch.zeros_like(coefficients)
        for start_token in range(0, len(self._weight), BLOCK):
            block = slice(start_token, start_token + BLOCK)
            logits = vectors @ self._weight[block].T
            here = self._probabilities[kind][layer, block]
            scratch = torch.empty_like(logits)
            for column, factors in enumerate(coefficients.T):
                torch.mul(logits, factors[:, None], out=scratch)
                totals[:, column] += scratch.exp_() @ here
        assert totals.isfinite().all(), "an exponential overflows: such a model needs the slower log-sum-exp"
        return (vectors @ self._weight[self._target])[:, None] * coefficients - totals.log()

    def _sampled(self, kind, count):
        chunks = self.chunks[kind]
        sample = chunks[:: max(1, len(chunks) // count)][:count]
        seconds = sum(timed(lambda chunk=chunk: self.score(kind, *chunk))[1] for chunk in sample)
        return seconds * len(chunks) / len(sample)

    def _chunks(self, kind):
        units = range(0, len(self._coefficients(kind, 0)), UNITS)
        return list(product(range(len(self._layers)), units))

    def _coefficients(self, kind, layer):
        return (self._states.ffn if kind == "ffn" else self._states.attention)[layer]

    def _subvalues(self, kind, layer):
        module = self._layers[layer]
        return (module.mlp.down_proj if kind == "ffn" else module.self_attn.o_proj).weight.T

    def _softmax(self, bases):
        return (bases * self._gamma / self._states.scale @ self._weight.T).softmax(-1)
