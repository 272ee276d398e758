"""Snapshots of groups, shared by the connections that need one at the same time."""

from __future__ import annotations

import asyncio

from presence import store
from presence.store import Member

SNAPSHOT_INTERVAL = 0.25
"""Seconds between two reads of the same group, however many connections need it."""


class Snapshots:
    """The members of a namespace's groups, read from Redis."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._reading: dict[str, asyncio.Task[list[Member]]] = {}
        self._read_at: dict[str, float] = {}

    async def of(self, group: str) -> list[Member]:
        """The members of a group, as of now or later. Raises `redis.RedisError`."""
        if group not in self._reading:
            self._reading[group] = asyncio.create_task(self._read(group), name="snapshot")
        return await asyncio.shield(self._reading[group])

    async def _read(self, group: str) -> list[Member]:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(self._read_at.get(group, 0.0) + SNAPSHOT_INTERVAL - loop.time())
        finally:
            # From here on this read would miss users who connect: later callers need another one.
            del self._reading[group]
        self._read_at[group] = loop.time()
        loop.call_later(SNAPSHOT_INTERVAL, self._read_at.pop, group, None)
        return await store.snapshot(self._namespace, group)
