"""`python -m bench.overhead`: measures the cost of metrics on the way of a publication from Redis to the clients.

It fans the same publications, as bytes from Redis, out to TCP connections, alternately with and without metrics, in one
process. It measures the CPU time of the thread, including the kernel's share, but excludes reading from Redis' socket
and from the other ends of the connections.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import django
import hiredis
import uvloop
from uvicorn.server import ServerState

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "realtime.settings.sockets")
django.setup()

from realtime.connections.frame_outlet import ConnectionOutlet  # noqa: E402
from realtime.layers import fanout, loop_layer  # noqa: E402
from realtime.layers.fanout import Group  # noqa: E402
from realtime.layers.listener import Listener, State  # noqa: E402
from realtime.server.uvicorn_server import configuration  # noqa: E402
from realtime.server.websocket_protocol import WebSocketProtocol  # noqa: E402
from realtime.telemetry.metrics import tally  # noqa: E402

ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Case:
    """The numbers of rooms, of connections in each, and of publications that arrive together in each."""

    title: str
    rooms: int
    connections: int
    together: int
    repeat: int


CASES = (
    Case("1 publication to 3 connections", rooms=100, connections=3, together=1, repeat=30),
    Case("1 publication to 1,000 connections", rooms=1, connections=1000, together=1, repeat=10),
    Case("100 publications at once to 1,000 connections", rooms=1, connections=1000, together=100, repeat=5),
)


class Receiver:
    """The part of a connection that its outlet uses."""

    def __init__(self, number: int) -> None:
        self.connection_id = f"{number:032x}"


class Wires:
    """TCP connections as the server has them after the handshake. Their peers read outside the measurement."""

    def __init__(self) -> None:
        self.config = configuration("127.0.0.1", 0)
        self.config.load()
        self.state = ServerState()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.peers: list[socket.socket] = []
        self.transports: list[asyncio.BaseTransport] = []

    async def writer(self) -> Any:
        peer = socket.create_connection(self.listener.getsockname())
        peer.setblocking(False)
        ours, _ = self.listener.accept()
        ours.setblocking(False)
        self.peers.append(peer)
        transport, protocol = await asyncio.get_running_loop().create_connection(
            lambda: WebSocketProtocol(self.config, self.state, {}), sock=ours
        )
        self.transports.append(transport)
        protocol.handshake_complete = True
        return protocol

    async def close(self) -> None:
        for transport in self.transports:
            transport.close()
        for end in (self.listener, *self.peers):
            end.close()
        await asyncio.sleep(0.01)  # the loop closes them

    def drain(self) -> None:
        for peer in self.peers:
            with suppress(BlockingIOError):
                while peer.recv(1 << 20):
                    pass


class Feed:
    """Replaces the subscription: `hand_on` accepts the bytes that Redis would have sent."""

    hand_on: ClassVar[Callable[[list[tuple[bytes, bytes]]], None]]

    def __init__(self, on_messages: Any, *_: Any) -> None:
        Feed.hand_on = on_messages

    def is_lost(self, *_: Any) -> bool:
        return False


class FanOut:
    """The channel layer of an instance with rooms full of connections, without its Redis."""

    def __init__(self, case: Case) -> None:
        self.case = case
        with mock.patch.object(loop_layer, "Subscriptions", Feed):
            self.layer = loop_layer.LoopLayer()
        self.groups = [Group(f"hub.thread.{number}", no_history) for number in range(case.rooms)]
        self.wires = Wires()
        self.reader = hiredis.Reader()
        self.position = 1

    async def fill(self) -> None:
        for group in self.groups:
            group.tail = self.position
            self.layer.groups[group.channel] = group
            for _ in range(self.case.connections):
                writer = await self.wires.writer()
                receiver: Any = Receiver(len(self.wires.peers))
                listener = Listener(group, ConnectionOutlet(receiver, writer))
                listener.position = self.position
                listener.start()
                group.listeners[listener] = None

    def reads(self) -> Iterator[bytes]:
        """Return the bytes that arrive from Redis: one read per room."""
        data = b'{"thread_id":"42","message_id":"17","body":"%b"}' % (b"x" * 120)
        for group in self.groups:
            yield b"".join(
                hiredis.pack_command((b"message", group.channel, packed(group.room or "", position, data)))
                for position in range(self.position + 1, self.position + 1 + self.case.together)
            )
        self.position += self.case.together

    async def once(self) -> float:
        """Fan out one read of each room, and return the CPU seconds."""
        reads = list(self.reads())
        started = time.thread_time()
        for read in reads:
            self.reader.feed(read)
            Feed.hand_on([(channel, payload) for _, channel, payload in iter(self.reader.gets, False)])
            await asyncio.sleep(0)  # the loop writes
            while any(group.fan_out for group in self.groups):  # noqa: ASYNC110  (a large room's next slice)
                await asyncio.sleep(0)
        spent = time.thread_time() - started
        self.wires.drain()
        return spent

    def assert_live(self) -> None:
        """Check that every listener got everything, so that a whole fan-out was measured."""
        for group in self.groups:
            for listener in group.listeners:
                assert listener.state is State.LIVE, listener.state  # noqa: S101
                assert listener.position == self.position  # noqa: S101


async def no_history(group: Group, position: int) -> None:
    """Do nothing: without a history no listener misses publications."""


def packed(room: str, position: int, data: bytes) -> bytes:
    """Return a publication as `append.lua` writes it."""
    frame = b'{"event":"thread:message","room":"%b","offset":"%d","data":%b}' % (
        room.encode(),
        position,
        data,
    )
    return b"F%016d%016d%012d%06d%b" % (position - 1, position, 0, 0, frame)


class Off:
    """A tally that does not count."""

    def fan_out(self, publications: Sequence[object], receivers: int) -> None:
        pass

    def observe(self, seconds: float) -> None:
        pass


@contextmanager
def without_metrics() -> Iterator[None]:
    module: Any = fanout
    tally, seconds = module.tally, module.metrics.FANOUT_SECONDS
    module.tally = module.metrics.FANOUT_SECONDS = Off()
    try:
        yield
    finally:
        module.tally, module.metrics.FANOUT_SECONDS = tally, seconds


async def compare(case: Case, say: Callable[[str], object]) -> None:
    """Report the growth of CPU time: medians of reads, alternately with and without metrics, one share a round."""
    fan_out = FanOut(case)
    await fan_out.fill()
    shares, times = [], []
    for number in range(ROUNDS + 1):
        counted, uncounted = [], []
        for turn in range(2 * case.repeat):
            if (turn + number) % 2:
                counted.append(await fan_out.once())
            else:
                with without_metrics():
                    uncounted.append(await fan_out.once())
        started = time.thread_time()
        tally.flush()  # as the process does every second
        flushed = (time.thread_time() - started) / len(counted)
        if number:  # the first round is a warm-up
            shares.append((statistics.median(counted) + flushed) / statistics.median(uncounted) - 1)
            times.append(statistics.median(counted) / case.rooms)
    fan_out.assert_live()
    await fan_out.wires.close()
    low, share, high = statistics.quantiles(shares, n=4)
    time_each = f"{statistics.median(times) * 1e6:,.1f} µs"
    say(f"| {case.title} | {time_each} | {share:+.1%} | {low:+.1%} … {high:+.1%} |")


async def main() -> None:
    say = sys.stdout.write
    say("| | CPU time | metrics add | middle half of the rounds |\n|---|--:|--:|--:|\n")
    for case in CASES:
        await compare(case, lambda line: say(line + "\n"))


if __name__ == "__main__":
    uvloop.run(main())
