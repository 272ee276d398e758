"""Ephemeral events: stored nowhere, sent from one connection to the other members of a room."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from realtime.connections.interface import Connection
from realtime.layers.outlets import Ephemeral
from realtime.protocol.catalogue import catalogue
from realtime.protocol.envelope import encode
from realtime.protocol.outgoing import outgoing
from realtime.protocol.rooms import groups_of, thread_of

TYPING_PAUSE = 3.0
"""Seconds before `typing` is announced again in a room that has seen it: clients repeat themselves every 5 s."""
TYPING_SECONDS = 10.0
"""Seconds without a repetition after which the user is reported to have stopped."""


async def emit(connection: Connection, room: str, event: str, data: Mapping[str, object]) -> None:
    """Send an event to a room, signed with the connection's user, in every namespace the event is meant for.

    Raises `redis.RedisError`, and `ValueError` when the data does not fit the event.
    """
    author: dict[str, Any] = {
        "user_id": connection.principal.user_id,
        "namespace": connection.namespace,
        "name": connection.principal.name,
    }
    if thread_id := thread_of(room):
        author["thread_id"] = thread_id
    frame = encode(event, outgoing(event, {**author, **data}), room=room).encode()
    groups = groups_of(catalogue().server[event].namespaces, room)
    await connection.layer.emit(groups, Ephemeral(room, frame, connection.connection_id))


class Typing:
    """The typing indicator: announces when the user of a connection starts and stops typing."""

    __slots__ = ("_announced_at", "_connection")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._announced_at: dict[str, float] = {}
        """By room: the loop time of the last announcement."""

    async def start(self, room: str) -> None:
        """Show the user as typing until it stops, leaves the room, or is silent for `TYPING_SECONDS`."""
        now = asyncio.get_running_loop().time()
        self._connection.after(TYPING_SECONDS, f"typing {room}", self.stop, room)
        if now - self._announced_at.get(room, -TYPING_PAUSE) >= TYPING_PAUSE:
            self._announced_at[room] = now
            await self._connection.emit(room, "thread:typing", typing=True)

    async def stop(self, room: str) -> None:
        """Announce the end in a room that saw the user typing."""
        if room in self._announced_at:
            del self._announced_at[room]
            self._connection.cancel(f"typing {room}")
            await self._connection.emit(room, "thread:typing", typing=False)

    async def stop_everywhere(self) -> None:
        """Announce the end in every room."""
        for room in tuple(self._announced_at):
            await self.stop(room)
