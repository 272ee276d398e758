"""A listener by itself: what it tells its client after Redis has lost something."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

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


@pytest.mark.parametrize(("position", "gaps"), [(1, [("thread:7", "lost")]), (3, [])])
async def test_client_that_is_behind_when_redis_loses_something_is_told_once_it_has_caught_up(
    position: int, gaps: list[tuple[str, str]]
):
    answered = asyncio.Event()

    async def read(group: Group, position: int) -> PublicationBatch | None:
        await answered.wait()
        return PublicationBatch([Publication(2, 1, "", b"{}")]) if position == 1 else None

    group, ears = Group("hub.thread.7", read), Ears()
    listener = Listener(group, ears)
    group.listeners[listener] = None
    group.tail = 3
    listener.place(position)
    listener.start()
    group.learn(2, 3)  # Redis ends at 2, and 3 had been heard of
    answered.set()
    await eventually(lambda: listener.state is State.LIVE)
    assert ears.gaps == gaps
    assert len(ears.frames) == len(gaps)


@pytest.mark.parametrize("way", ["history", "publication"])
async def test_live_client_that_lacks_what_redis_has_lost_is_told(way: str):
    """It did not get the last publication, as orders may have been missed, and stands where the history ends now."""

    async def read(group: Group, position: int) -> PublicationBatch | None:
        return PublicationBatch([Publication(4, 2, "", b"{}")]) if group.tail == 4 and position == 2 else None

    group, ears = Group("hub.thread.7", read), Ears()
    listener = Listener(group, ears)
    group.listeners[listener] = None
    group.tail = 2
    listener.place(2)
    listener.start()
    group.receive(Publication(3, 2, "", b"{}"))
    group.clear()
    if way == "history":
        group.learn(2, 3)
        listener.compare(2)
    else:
        group.receive(following := Publication(4, 2, "", b"{}"))
        listener.take(PublicationBatch([following]))
    with contextlib.suppress(AssertionError):
        await eventually(lambda: ears.gaps, 5)
    assert ears.gaps == [("thread:7", "lost")]
    assert listener.state is State.LIVE
    assert len(ears.frames) == (way == "publication")


async def test_client_that_is_told_where_it_stands_is_not_told_of_a_loss_before_that():
    async def read(group: Group, position: int) -> PublicationBatch | None:
        return None

    group, ears = Group("hub.thread.7", read), Ears()
    listener = Listener(group, ears)
    group.listeners[listener] = None
    group.tail = 3
    group.learn(2, 3)
    listener.place(2)
    listener.start()
    assert listener.state is State.LIVE
    assert ears.gaps == []


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
