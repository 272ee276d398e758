"""How many connections a user may have, over all processes: each takes a seat, and the oldest gives up its own.

A seat is a connection's channel, so that whoever needs it can tell the connection; and a channel names its process,
so that the seats of one that was killed are told from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from realtime.conf import conf
from realtime.layers.interface import room_layer
from realtime.redis.client import execute, key, run, script

SECONDS = 7 * 86400
"""Seats are remembered for so long after the user last connected."""

_take = script(Path(__file__).parent / "scripts" / "seats.lua")


class Seat(NamedTuple):
    """One connection of a user."""

    namespace: str
    user_id: str
    channel: str
    opened_at: float
    """Redis' clock, seconds."""

    @property
    def key(self) -> str:
        """Where the user's seats are."""
        return key("seats", self.namespace, self.user_id)


async def take(seat: Seat) -> None:
    """Take a seat; who is one too many is told to go (`connection.replaced`). Raises `redis.RedisError`."""
    if limit := conf().limits.user_connections:
        taken = await run(_take, [seat.key], [limit, SECONDS, repr(seat.opened_at), seat.channel])
        if taken[0]:
            await _make_room(seat, [channel.decode() for channel in taken[0]])


async def give_up(seat: Seat) -> None:
    """The connection is over. Raises `redis.RedisError`."""
    if conf().limits.user_connections:
        await execute("ZREM", seat.key, seat.channel)


async def _make_room(seat: Seat, taken: Sequence[str]) -> None:
    layer = room_layer()
    dead = await layer.dead(taken)
    alive = [channel for channel in taken if channel not in dead]
    surplus = alive[: max(len(alive) - conf().limits.user_connections, 0)]
    for channel in surplus:
        await layer.send(channel, {"type": "connection.replaced"})
    if leaving := [*dead, *surplus]:
        await execute("ZREM", seat.key, *leaving)
