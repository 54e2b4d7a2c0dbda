"""Draws tokens from the model's distribution, the same ones from the same seed whatever is computed beside them."""

from __future__ import annotations

import numpy as np
import torch
from neuron_attribution.generation import Sampling
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def processors(sampling: Sampling | None, prompt: int) -> LogitsProcessorList:
    """What changes logits behind a prompt of so many tokens, so that the largest is the token to choose."""
    if sampling is None:
        return LogitsProcessorList()
    found = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    found.append(_Luck(sampling.seed or 0, prompt))
    return found


class _Luck(LogitsProcessor):
    """Adds Gumbel noise to logits: the largest of them is then a draw from their softmax (the Gumbel-max trick).

    The noise depends on the seed, the place of the token in the text and the token's id, and on nothing else, so that
    all sequences of a batch have the same. The raw stream of Philox is the same in every version of numpy.
    """

    def __init__(self, seed: int, prompt: int) -> None:
        self._seed = seed
        self._prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits [sequences, vocabulary] with noise."""
        step = input_ids.shape[1] - self._prompt
        raw = np.random.Philox(key=self._seed, counter=[0, 0, 0, step]).random_raw(scores.shape[-1])
        uniform = ((raw >> np.uint64(11)) + 0.5) * 2.0**-53
        noise = -np.log(-np.log(uniform))
        return scores.double() + torch.from_numpy(noise).to(scores.device)
