"""The connection limit of a user, over all instances: with one connection too many, the oldest is closed.

A connection is recorded by its channel, through which it can be told to close. A channel names its instance, so that
the records which a killed instance left behind can be told from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from realtime.conf import conf
from realtime.layers.interface import room_layer
from realtime.redis.client import execute, key, run, script

SECONDS = 7 * 86400
"""Seconds for which the connections of a user are remembered after the last of them was opened."""

_record = script(Path(__file__).parent / "scripts" / "user_limit.lua")


class UserConnection(NamedTuple):
    """One connection of a user."""

    namespace: str
    user_id: str
    channel: str
    opened_at: float = 0.0
    """Redis' clock, seconds; 0: not known yet."""

    @property
    def key(self) -> str:
        """The key of the user's connections."""
        return key("seats", self.namespace, self.user_id)


async def admit(connection: UserConnection) -> None:
    """Record a connection; if it is one too many, the oldest is closed (4409). Raises `redis.RedisError`."""
    if limit := conf().limits.user_connections:
        arguments = [limit, SECONDS, repr(connection.opened_at), connection.channel]
        found = await run(_record, [connection.key], arguments)
        if found[0]:
            await close_oldest(connection, [channel.decode() for channel in found[0]])


async def release(connection: UserConnection | None) -> None:
    """The connection is over; None: it was never recorded. Raises `redis.RedisError`."""
    if connection is not None and conf().limits.user_connections:
        await execute("ZREM", connection.key, connection.channel)


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
