"""Measured times: what a call takes, medians with both extremes, and ratios of pairs measured side by side."""

import gc
import sys
import time
from contextlib import contextmanager
from statistics import median

import torch


def progress(text):
    print(text, file=sys.stderr, flush=True)


def timed(call):
    """The result of a call and its seconds, the device's work included."""
    synchronize()
    start = time.perf_counter()
    result = call()
    synchronize()
    return result, time.perf_counter() - start


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def settled():
    """Garbage is collected before, not within, what is measured."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ratios(numerators, denominators):
    """One ratio per pair."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def spread(values, digits=3, unit=""):
    """Median (least to largest)."""
    unit = f" {unit}".rstrip()
    if len(values) == 1:
        return f"{_number(values[0], digits)}{unit}"
    low, high = _number(min(values), digits), _number(max(values), digits)
    return f"{_number(median(values), digits)}{unit} ({low} to {high})"


def milliseconds(values):
    return spread([1000 * value for value in values], unit="ms")


def _number(value, digits):
    if value == 0:
        return "0"
    places = max(0, digits - 1 - _exponent(value))
    return f"{value:,.{places}f}"


def _exponent(value):
    return int(f"{abs(value):e}".split("e")[1])
