"""The least that a call can take: a bare grpc.aio server and a bare worker process, which computes and answers.

`python -m benchmarks.bare FILE` serves: whatever is asked, the worker multiplies matrices for as long as an attribution
takes, and answers with the seconds of that and the bytes of FILE. Nothing is read, checked, queued, counted or built.
"""

import asyncio
import multiprocessing
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

METHOD = "/bare/Call"
SECONDS = 0.45
_SECONDS = struct.Struct("!d")


@contextmanager
def serving(answer, file):
    """A bare server process that answers with these bytes; yields its address."""
    file.write_bytes(answer)
    command = [sys.executable, "-m", "benchmarks.bare", str(file)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def added(channel, request, parse):
    """Seconds that a call takes beside what the worker computes; its answer is parsed as a client's is."""
    call = channel.unary_unary(METHOD, response_deserializer=lambda data: (data, parse(data[_SECONDS.size :])))
    start = time.perf_counter()
    data, _ = call(request)
    return time.perf_counter() - start - _SECONDS.unpack_from(data)[0]


def _work(end, answer):
    """Run in the worker process."""
    import torch

    torch.set_num_threads(2)
    rows, matrix = torch.randn(270, 576), torch.randn(49152, 576)
    while end.recv(65536):
        start = time.perf_counter()
        while (seconds := time.perf_counter() - start) < SECONDS:
            rows @ matrix.T
        end.sendall(_SECONDS.pack(seconds) + answer)


class _Pipe(asyncio.Protocol):
    def __init__(self, size):
        self._size, self._data, self._answer = size, bytearray(), None

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._data += data
        if len(self._data) == self._size:
            self._answer.set_result(bytes(self._data))
            self._data.clear()

    async def ask(self, request, _context):
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer


async def _serve(answer):
    import grpc

    end, worker_end = socket.socketpair()
    multiprocessing.get_context("spawn").Process(target=_work, args=(worker_end, answer), daemon=True).start()
    pipe = _Pipe(_SECONDS.size + len(answer))
    await asyncio.get_running_loop().create_connection(lambda: pipe, sock=end)
    server = grpc.aio.server()
    handlers = {METHOD.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(pipe.ask)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(METHOD.split("/")[1], handlers),))
    port = server.add_insecure_port("localhost:0")
    await server.start()
    print(f"localhost:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]).read_bytes()))
