"""Delivery: the bridge with everything that it reads, and the presence sweeper."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from presence.events import announcements
from presence.sweeper import Sweeper
from realtime.bridge.bridge import Bridge
from realtime.bridge.bus_entry import BUS, Source

PRESENCE = Source("presence", b"transition", announcements, keep=86400)


async def deliver(on_ready: Callable[[], None] = lambda: None) -> None:
    """Run a bridge and a sweeper until cancelled. `on_ready` is called once, when subscribed and caught up."""
    bridge = Bridge([BUS, PRESENCE])
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bridge.run(), name="bridge")
        tasks.create_task(Sweeper().run(), name="sweeper")
        await bridge.ready.wait()
        on_ready()
