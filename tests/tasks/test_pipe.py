"""The pipe between the front end and a worker, over a real pair of sockets: both ends, and what may go wrong."""

import asyncio
import pickle
import socket
import struct
import threading
from contextlib import asynccontextmanager, suppress

import pytest
from neuron_attribution_server.tasks.wire.pipe import FrontEnd, WorkerEnd

LARGE = bytes(range(256)) * 40_000  # many times what a socket holds


class Heard:
    """What a front end was given."""

    def __init__(self):
        self.messages = asyncio.Queue()
        self.errors = []
        self.closed = asyncio.Event()


@asynccontextmanager
async def piped():
    """A front end, what it heard, and the bare socket of the worker."""
    end, worker = socket.socketpair()
    heard = Heard()
    front = FrontEnd(heard.messages.put_nowait, heard.errors.append, heard.closed.set)
    await asyncio.get_running_loop().create_connection(lambda: front, sock=end)
    with worker:
        yield front, heard, worker
    await asyncio.wait_for(heard.closed.wait(), 10)


def framed(data):
    return struct.pack("!Q", len(data)) + data


def running(scenario):
    async def run():
        async with piped() as (front, heard, worker):
            await asyncio.wait_for(scenario(front, heard, worker), 10)

    asyncio.run(run())


def test_messages_of_any_size_cross_in_order():
    async def scenario(front, heard, worker):
        end = WorkerEnd(worker)
        for message in ({"first": 1}, LARGE, None):
            front.send(message)
        assert [await asyncio.to_thread(end.receive) for _ in range(3)] == [{"first": 1}, LARGE, None]
        await asyncio.to_thread(lambda: [end.send(message) for message in (LARGE, "last")])
        assert [await heard.messages.get() for _ in range(2)] == [LARGE, "last"]

    running(scenario)


def test_messages_in_pieces_and_several_at_once():
    async def scenario(front, heard, worker):
        data = b"".join(framed(pickle.dumps(number)) for number in range(3))
        for byte in data:
            worker.sendall(bytes([byte]))
            await asyncio.sleep(0)
        worker.sendall(data)
        assert [await heard.messages.get() for _ in range(6)] == [0, 1, 2, 0, 1, 2]

    running(scenario)


def test_threads_that_send_at_the_same_time_do_not_mix():
    async def scenario(front, heard, worker):
        end = WorkerEnd(worker)
        threads = [threading.Thread(target=end.send, args=(bytes([number]) * 1_000_000,)) for number in range(8)]
        for thread in threads:
            thread.start()
        messages = [await heard.messages.get() for _ in threads]
        assert sorted(tuple({*message}) for message in messages) == [(number,) for number in range(8)]
        for thread in threads:
            thread.join()

    running(scenario)


def test_what_cannot_be_pickled_leaves_the_pipe_in_order():
    async def scenario(front, heard, worker):
        end = WorkerEnd(worker)
        with pytest.raises((AttributeError, pickle.PicklingError)):
            end.send(lambda: None)
        end.send("next")
        assert await heard.messages.get() == "next"

    running(scenario)


def test_what_cannot_be_read_is_said_once_and_ends_the_reading():
    async def scenario(front, heard, worker):
        worker.sendall(framed(b"no pickle") + framed(pickle.dumps("later")))
        while not heard.errors:
            await asyncio.sleep(0)
        with suppress(OSError):
            worker.sendall(framed(pickle.dumps("later still")))
        await heard.closed.wait()
        assert [type(error) for error in heard.errors] == [pickle.UnpicklingError]
        assert heard.messages.empty()

    running(scenario)


def test_a_worker_that_ends_amid_a_message_has_sent_nothing():
    async def scenario(front, heard, worker):
        worker.sendall(framed(pickle.dumps("whole")) + framed(pickle.dumps("half"))[:-1])
        worker.shutdown(socket.SHUT_WR)
        await heard.closed.wait()
        assert heard.messages.get_nowait() == "whole"
        assert heard.messages.empty()
        assert not heard.errors
        front.send("into the void")
        front.finish()

    running(scenario)


def test_the_worker_hears_that_nothing_more_comes():
    async def scenario(front, heard, worker):
        end = WorkerEnd(worker)
        front.send(LARGE)
        front.finish()
        assert await asyncio.to_thread(end.receive) == LARGE
        with pytest.raises(EOFError):
            await asyncio.to_thread(end.receive)
        front.close()

    running(scenario)
