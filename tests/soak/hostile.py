"""`python -m soak.hostile [--minutes 5]`: callers who mean harm, all at once, while eight ordinary ones go on.

A server process on the demo model, with tokens, a web page, metrics and a health port. First the ordinary callers are
alone, to learn their answers and times. Then come peers with a window of zero on every call and both health services,
huge keys, streams that nobody reads, the heaviest requests that are allowed, big JSON, half-sent requests on every HTTP
port, connections until no file descriptor is left, worker processes that are killed and cannot be spawned, token files
that cannot be read, work that is cancelled, and connections that are reset. At last SIGHUP.

Exit status 1 where an ordinary call failed or was answered wrong, where their 99th percentile is over five times the
quiet one, where memory grew, where anything ended as INTERNAL or UNKNOWN, or the end took longer than configured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from soak.hostile_actors import REVOKED_AND_VALID, Actors
from soak.hostile_server import GRACE, HostileServer
from soak.ordinary import Ordinary
from soak.processes import anonymous_bytes, family

QUIET_SECONDS = 60
WARM_UP_SECONDS = 120
"""Of hostile callers, who kill nothing yet, after which memory must be flat."""
SETTLING_SECONDS = 30
TIDY_SECONDS = 12
SLOWER = 5.0
GROWTH = 0.05
SHOWN = 30
"""Lines of the log, and troubles, that are shown at most."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, HostileServer(Path(folder)) as server:
        ordinary = Ordinary(server, arguments.seed)
        quiet = ordinary.during(lambda: time.sleep(QUIET_SECONDS))
        print(f"quiet: {quiet}", flush=True)
        with Actors(server, arguments.seed, kill=False) as first:
            ordinary.during(lambda: first.act(WARM_UP_SECONDS))
        ordinary.during(lambda: time.sleep(SETTLING_SECONDS))
        before = memory(server)
        with Actors(server, arguments.seed) as actors:
            harmed = ordinary.during(lambda: actors.act(60 * arguments.minutes))
        print(f"with hostile callers: {harmed}\n{harmed.slowest()}\n{actors}", flush=True)
        if server.ended is not None:
            print("\n".join(server.log.splitlines()[-SHOWN:]), *harmed.troubles[:SHOWN], sep="\n")
            print(f"the server has ended with status {server.ended}")
            return 1
        settled = ordinary.during(lambda: time.sleep(SETTLING_SECONDS))
        after, statuses = memory(server), server.statuses()
        seconds, code = server.hang_up()
    print(f"afterwards: {settled}")
    for name, (one, other) in {name: (before[name], after[name]) for name in before}.items():
        print(f"{name:10} {one >> 20:6} MiB allocated before, {other >> 20:6} after ({other / one - 1:+.1%})")
    print("statuses:", ", ".join(f"{name} {count:.0f}" for name, count in sorted(statuses.items())))
    print(f"ended by SIGHUP after {seconds:.1f} s with exit status {code}")
    troubles = [
        *harmed.troubles,
        *settled.troubles,
        *[f"{name} grew from {before[name]} to {after[name]} bytes" for name in before if grew(before, after, name)],
        *[f"{statuses[name]:.0f} calls ended as {name}" for name in ("Internal", "Unknown") if statuses.get(name)],
    ]
    if actors.counts["unreadable_files"][REVOKED_AND_VALID]:
        troubles.append("a token that was revoked went on being valid")
    slower = harmed.quantile(0.99) / quiet.quantile(0.99)
    if slower > SLOWER:
        troubles.append(f"the 99th percentile is {slower:.1f} times the quiet one")
    if seconds > GRACE + 10 or code:
        troubles.append(f"the end took {seconds:.1f} s, with exit status {code}")
    print("\n".join(troubles[:SHOWN]) or "nothing to complain of")
    return int(bool(troubles))


def memory(server: HostileServer) -> dict[str, int]:
    """What the front end and the worker have allocated, once they had the time to tidy: medians of a few looks."""
    time.sleep(TIDY_SECONDS)
    looks = []
    for _ in range(5):
        looks.append([anonymous_bytes(pid) for pid in family(server.pid)])
        time.sleep(0.5)
    sums = [(each[0], sum(each[1:])) for each in looks]
    return {"front end": round(median(one for one, _ in sums)), "worker": round(median(other for _, other in sums))}


def grew(before: dict[str, int], after: dict[str, int], name: str) -> bool:
    return after[name] > (1 + GROWTH) * before[name]


if __name__ == "__main__":
    sys.exit(main())
