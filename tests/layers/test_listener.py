"""A listener by itself: what it tells its client after Redis has lost something."""

from __future__ import annotations

import asyncio

from realtime.layers.fanout import Group
from realtime.layers.listener import Listener, State
from realtime.layers.outlets import PublicationBatch
from realtime.protocol.publication import Publication
from tests.inprocess import eventually
from tests.layers.support import Ears


async def test_client_that_goes_on_while_a_former_read_is_under_way_gets_nothing_twice():
    answered = asyncio.Event()
    reads: list[int] = []

    async def read(group: Group, position: int) -> PublicationBatch | None:
        reads.append(position)
        await answered.wait()
        await asyncio.sleep(0)
        return PublicationBatch([Publication(position + 1, position, "", b"hello")]) if position < 2 else None

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
    assert ears.heard == ["hello"] * 2
