"""How logs name a prompt: by a short hash, so that the same one can be recognized and none can be read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy

_DIGITS = 12


def prompt_digest(prompt: str | Sequence[int]) -> str:
    """The first digits of a SHA-256: of a text in UTF-8, or of token ids as 32-bit little-endian numbers."""
    data = prompt.encode() if isinstance(prompt, str) else numpy.asarray(prompt, "<u4").tobytes()
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
