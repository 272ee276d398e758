"""A connection's place in its rooms: on our own channel layer with recovery, on any other one without."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from realtime import roomlog
from realtime.delivery import Ephemeral, Run
from realtime.layers import RoomChannelLayer
from realtime.roomlog import Unrecoverable
from realtime.rooms import group_name

REPLAY_SLICE = 100
"""Publications read from the log at once: a replay holds no more than that, however much was missed."""


class Membership(Protocol):
    """What a consumer asks of its channel layer."""

    async def enter(self, rooms: Sequence[str]) -> None:
        """Join rooms, muted: publications do not come yet. Raises `redis.RedisError`."""

    async def positions(self, rooms: Sequence[str]) -> dict[str, int]:
        """Where rooms stand that were entered. Raises `redis.RedisError`."""

    def position(self, room: str) -> int:
        """Where this process stands in a room that was entered; 0 if the layer does not know."""

    def listen(self, room: str) -> int | None:
        """Publications come from here on: all after the returned position (None: after what `positions` said)."""

    def mute(self, room: str) -> None:
        """Publications do not come any more, if the layer can hold them back."""

    async def leave(self, room: str) -> None:
        """No more of this room. Raises `redis.RedisError`."""

    async def missed(self, room: str, since: str) -> int | None:
        """How many publications came after an offset; None when not all of them are known."""

    def replay(self, room: str, position: int) -> AsyncIterator[Run]:
        """What came after a position, in slices, up to where `listen` goes on within the same turn of the loop.

        Raises `Unrecoverable` when it cannot all be had.
        """

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        """Say what is stored nowhere. Raises `redis.RedisError`."""


class RoomMembership:
    """On `RoomChannelLayer`."""

    def __init__(self, layer: RoomChannelLayer, namespace: str, channel: str) -> None:
        self._layer = layer
        self._namespace = namespace
        self._channel = channel

    async def enter(self, rooms: Sequence[str]) -> None:
        for room in rooms:
            self._layer.begin_group_add(group_name(self._namespace, room), self._channel)
        for room in rooms:
            await self._layer.group_add(group_name(self._namespace, room), self._channel)

    async def positions(self, rooms: Sequence[str]) -> dict[str, int]:
        return {room: self.position(room) for room in rooms}

    def position(self, room: str) -> int:
        return self._layer.position(group_name(self._namespace, room))

    def listen(self, room: str) -> int | None:
        return self._layer.listen(group_name(self._namespace, room), self._channel)

    def mute(self, room: str) -> None:
        self._layer.mute(group_name(self._namespace, room), self._channel)

    async def leave(self, room: str) -> None:
        await self._layer.group_discard(group_name(self._namespace, room), self._channel)

    async def missed(self, room: str, since: str) -> int | None:
        position = roomlog.parse_position(since)
        if position is None:
            return None
        group = group_name(self._namespace, room)
        if position == self._layer.position(group):
            return 0  # what comes after it will come live
        try:
            return (await self._layer.read(group, position, REPLAY_SLICE))[0].missed
        except Unrecoverable as lost:
            if lost.end != self._layer.position(group):
                # "You are live from the room's end": then this process has to be there.
                await self._layer.catch_up(group)
            return None

    async def replay(self, room: str, position: int) -> AsyncIterator[Run]:
        group = group_name(self._namespace, room)
        while position != self._layer.position(group):
            if position > self._layer.position(group):
                # The client has seen more than this process: the room's messages are still on their way here.
                await self._layer.catch_up(group)
                if position > (here := self._layer.position(group)):
                    raise Unrecoverable(here)
                continue
            found, run = await self._layer.read(group, position, REPLAY_SLICE)
            # Not beyond where this process stands: what it has not handed on yet, it will hand on live.
            here = self._layer.position(group)
            publications = [p for p in found.publications if p.position <= here]
            if not publications:
                raise Unrecoverable(here)
            yield run if len(publications) == len(found.publications) else Run(room, publications)
            position = publications[-1].position

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        await self._layer.emit(groups, ephemeral)


class GroupMembership:
    """On any channel layer: `group_add`, and no recovery."""

    def __init__(self, layer: Any, namespace: str, channel: str) -> None:
        self._layer = layer
        self._namespace = namespace
        self._channel = channel

    async def enter(self, rooms: Sequence[str]) -> None:
        for room in rooms:
            await self._layer.group_add(group_name(self._namespace, room), self._channel)

    async def positions(self, rooms: Sequence[str]) -> dict[str, int]:
        found = await roomlog.ends([group_name(self._namespace, room) for room in rooms])
        return {room: found[group_name(self._namespace, room)] for room in rooms}

    def position(self, room: str) -> int:
        return 0

    def listen(self, room: str) -> int | None:
        return None

    def mute(self, room: str) -> None:
        """It cannot."""

    async def leave(self, room: str) -> None:
        await self._layer.group_discard(group_name(self._namespace, room), self._channel)

    async def missed(self, room: str, since: str) -> int | None:
        return None

    async def replay(self, room: str, position: int) -> AsyncIterator[Run]:
        return  # nothing was held back: this layer passes everything on from the moment of entering
        yield Run(room, ())

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        for group in groups:
            await self._layer.group_send(group, ephemeral.message())


def membership(layer: Any, namespace: str, channel: str) -> Membership:
    """The membership that fits the channel layer."""
    if "rooms" in layer.extensions:
        return RoomMembership(layer, namespace, channel)
    return GroupMembership(layer, namespace, channel)
