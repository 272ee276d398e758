"""How many connections a user may have, over all processes: each takes a seat, and the oldest gives up its own.

A seat is a connection's channel, so that whoever needs it can tell the connection; and a channel names its process,
so that the seats of one that was killed are told from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from channels.layers import get_channel_layer

from realtime.conf import conf
from realtime.process import process_channel
from realtime.redis import client, in_batches, key, run, script
from realtime.together import Together

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
    if conf().limits.user_connections:
        taken = await _taken.ask(seat)
        if taken:
            await _make_room(seat, taken)


async def give_up(seat: Seat) -> None:
    """The connection is over. Raises `redis.RedisError`."""
    if conf().limits.user_connections:
        await _given_up.ask(seat)


async def _take_all(seats: Sequence[Seat]) -> list[list[str]]:
    """For each, all seats of its user, oldest first, if there are too many."""
    keys = [seat.key for seat in seats]

    async def take(part: Sequence[int]) -> Any:
        values = [
            value for number in part for value in (repr(seats[number].opened_at), seats[number].channel)
        ]
        limits = [conf().limits.user_connections, SECONDS]
        return await run(_take, [keys[number] for number in part], [*limits, *values])

    return [[channel.decode() for channel in channels] for channels in await in_batches(keys, take)]


async def _give_up_all(seats: Sequence[Seat]) -> list[None]:
    async with client().pipeline(transaction=False) as pipeline:
        for seat in seats:
            pipeline.zrem(seat.key, seat.channel)
        await pipeline.execute()
    return [None] * len(seats)


# In a storm hundreds come or go at once.
_taken: Together[Seat, list[str]] = Together(_take_all)
_given_up: Together[Seat, None] = Together(_give_up_all)


async def _make_room(seat: Seat, taken: Sequence[str]) -> None:
    layer: Any = get_channel_layer()
    dead = await _dead(taken) if "rooms" in layer.extensions else set()
    alive = [channel for channel in taken if channel not in dead]
    surplus = alive[: max(len(alive) - conf().limits.user_connections, 0)]
    for channel in surplus:
        await layer.send(channel, {"type": "connection.replaced"})
    if leaving := [*dead, *surplus]:
        await client().zrem(seat.key, *leaving)


async def _dead(channels: Sequence[str]) -> set[str]:
    """Channels whose process does not listen (any more): it was killed."""
    processes = {
        channel: process_channel(channel.partition("!")[0].rpartition(".")[2]) for channel in channels
    }
    names = sorted(set(processes.values()))
    layer: Any = get_channel_layer()
    listeners = await layer.listeners(names)
    deaf = {name for name, number in zip(names, listeners, strict=True) if not number}
    return {channel for channel, process in processes.items() if process in deaf}
