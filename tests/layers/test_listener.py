"""A listener by itself: what it tells its client after Redis has lost something."""

from __future__ import annotations

import asyncio

from realtime.layers.fanout import Group
from realtime.layers.listener import Listener, State
from realtime.layers.outlets import PublicationBatch
from realtime.protocol.publication import Publication
from tests.inprocess import eventually


class Ears:
    """An outlet that keeps what it is told."""

    connection_id = "c"
    is_behind = False

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.gaps: list[tuple[str, str]] = []

    def write(self, frames: bytes) -> None:
        self.frames.append(frames)

    async def drained(self) -> None:
        """It has read everything."""

    def gap(self, room: str, reason: str) -> None:
        self.gaps.append((room, reason))

    def fail(self) -> None:
        raise AssertionError

    def message(self, message: object) -> None:
        raise AssertionError


async def test_client_that_goes_on_while_a_former_read_is_under_way_gets_nothing_twice():
    answered = asyncio.Event()
    reads: list[int] = []

    async def read(group: Group, position: int) -> PublicationBatch | None:
        reads.append(position)
        await answered.wait()
        await asyncio.sleep(0)
        return PublicationBatch([Publication(position + 1, position, "", b"{}")]) if position < 2 else None

    group, ears = Group("hub.thread.7", read), Ears()
    listener = Listener(group, ears)
    group.listeners[listener] = None
    group.tail = 2
    listener.start()
    await eventually(lambda: reads == [0])
    listener.pause()
    listener.start()
    await eventually(lambda: reads == [0, 0])
    answered.set()
    await eventually(lambda: listener.state is State.LIVE)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(ears.frames) == 2
