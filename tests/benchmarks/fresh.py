"""One length in a fresh process: `python -m benchmarks.fresh TOKENS THREADS REPETITIONS` prints JSON."""

import json
import sys
from pathlib import Path


def main():
    from benchmarks import subject
    from benchmarks.timing import settled, timed

    tokens, threads, repetitions = map(int, sys.argv[1:])
    alone = subject.demo_engine(threads)
    alone.attribute([alone.prompts[0]])
    prompt = alone.long_prompt(tokens)
    _reset_peak()
    loaded = _status("VmRSS")
    alone.forget()
    alone.attribute([prompt])
    peak = _status("VmHWM")
    both = alone.with_model()
    both.forward([prompt])
    forward, attribution = [], []
    with settled():
        for _ in range(repetitions):
            both.forget()
            forward.append(timed(lambda: both.forward([prompt]))[1])
            attribution.append(timed(lambda: both.attribute([prompt]))[1])
    found = {"tokens": tokens, "forward": forward, "attribution": attribution}
    print(json.dumps(found | {"loaded": loaded, "peak": peak, "growth": peak - loaded}))


def _reset_peak():
    """Let the kernel count VmHWM from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name):
    """A memory size of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


if __name__ == "__main__":
    main()
