"""The connection limit of a user, over all instances: with one connection too many, the oldest is closed.

A connection is recorded by its channel, through which it can be told to close. A channel names its instance, so that
the records which a killed instance left behind can be told from the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from redis.exceptions import RedisError

from realtime.conf import conf
from realtime.layers.interface import room_layer
from realtime.redis.client import execute, key
from realtime.tasks.per_loop import PerLoop
from realtime.tasks.supervision import PAUSE
from realtime.tasks.task_set import TaskSet

SECONDS = 7 * 86400
"""Seconds for which the connections of a user are remembered after the last of them was opened."""
MOST_OVERDUE = 100_000
"""Records that are still to be taken away when Redis is back: about 25 MB."""
AT_ONCE = 500
"""Records that are taken away together."""


class UserConnection(NamedTuple):
    """One connection of a user."""

    namespace: str
    user_id: str
    channel: str

    @property
    def key(self) -> str:
        """The key of the user's connections."""
        return key("seats", self.namespace, self.user_id)


async def release(connection: UserConnection | None) -> None:
    """The connection is over; None: it was never recorded. Raises `redis.RedisError`, and then tries on by itself."""
    if connection is not None and conf().limits.user_connections:
        try:
            await _forget(connection)
        except RedisError:
            _overdue().add(connection)
            raise


async def _forget(connection: UserConnection) -> None:
    await execute("ZREM", connection.key, connection.channel)


class Overdue:
    """Connections that ended while Redis was away. Left in their records, they would have living ones closed."""

    def __init__(self) -> None:
        self._connections: list[UserConnection] = []
        self._tasks = TaskSet()

    def add(self, connection: UserConnection) -> None:
        """Take its record away as soon as Redis is back."""
        if not self._connections:
            self._tasks.supervise("overdue", self._forget_all)
        if len(self._connections) < MOST_OVERDUE:
            self._connections.append(connection)

    def abort(self) -> None:
        """The event loop ends."""
        self._tasks.cancel()

    async def _forget_all(self) -> None:
        while some := self._connections[:AT_ONCE]:
            try:
                await asyncio.gather(*map(_forget, some))
            except RedisError:
                await asyncio.sleep(PAUSE)
            else:
                del self._connections[: len(some)]


_overdue: PerLoop[Overdue] = PerLoop(Overdue, Overdue.abort)
"""Those of the running loop."""


async def close_oldest(connection: UserConnection, channels: Sequence[str]) -> None:
    """Close as many of the user's connections (`channels`, oldest first) as are too many. Raises `redis.RedisError`."""
    layer = room_layer()
    dead = await layer.dead(channels)
    alive = [channel for channel in channels if channel not in dead]
    surplus = alive[: max(len(alive) - conf().limits.user_connections, 0)]
    for channel in surplus:
        await layer.send(channel, {"type": "connection.replaced"})
    if leaving := [*dead, *surplus]:
        await execute("ZREM", connection.key, *leaving)
