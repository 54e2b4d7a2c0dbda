"""Hostile requests by the thousand against a server on a real port; then a normal one must get its right answer.

python -m soak.fuzz --count 100000             a server process of its own, with a fake model
python -m soak.fuzz --address localhost:50051   any server
"""

import argparse
import random
import sys
import time
from collections import Counter, deque
from contextlib import contextmanager

import grpc
from client.strategies import assert_same
from neuron_attribution import Client
from neuron_attribution.transport.status import from_rpc_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from service.servers import listening_address, server_process

from soak.mutations import PROMPT, VALID, call_with, mutated

IN_FLIGHT = 32
PATIENCE = 300
"""Seconds: more than the longest request takes that is allowed, and what waits before it."""
CODES = {code.value[0]: code.name for code in grpc.StatusCode}
FORBIDDEN = {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "DATA_LOSS"}


@contextmanager
def server(address):
    if address:
        yield address
        return
    with server_process("HarmlessEngine") as process:
        own = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        yield own


def explanations(address):
    with Client(address) as client:
        return client.attribute(PROMPT).explanations


def outcome(method, answers):
    """The status of a call and its reason; of a stream, those of its items."""
    try:
        received = answers()
    except grpc.RpcError as error:
        return error.code().name, from_rpc_error(error, "").reason
    if method != "AttributeStream":
        return "OK", ""
    items = [messages.AttributeStreamResponse.FromString(answer) for answer in received]
    codes = {grpc.StatusCode.OK.name if not item.error.code else CODES[item.error.code] for item in items}
    reasons = {item.error.reason for item in items}
    return " ".join(codes), " ".join(reasons)


def fuzz(channel, count, seed):
    source, counts, running = random.Random(seed), Counter(), deque()
    for number in range(count):
        method = source.choice(list(VALID))
        data = mutated(source.choice(VALID[method]), source)
        running.append((method, call_with(channel, method, data, PATIENCE)))
        while len(running) > (IN_FLIGHT if number < count - 1 else 0):
            done, call = running.popleft()
            counts[done, *outcome(done, call)] += 1
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--address", help="HOST:PORT of a running server")
    arguments = parser.parse_args()
    with server(arguments.address) as address, grpc.insecure_channel(address) as channel:
        before, begin = explanations(address), time.monotonic()
        counts = fuzz(channel, arguments.count, arguments.seed)
        seconds = time.monotonic() - begin
        assert_same(explanations(address), before)
    for (method, code, reason), number in sorted(counts.items()):
        print(f"{number:8}  {method:16} {code:20} {reason}")
    print(
        f"{sum(counts.values()):8}  requests in {seconds:.0f} s; a normal request still gets the answer it got before"
    )
    return int(any(code in FORBIDDEN for _, code, _ in counts))


if __name__ == "__main__":
    sys.exit(main())
