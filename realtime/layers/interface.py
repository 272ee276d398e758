"""What the bridge and the connections need of a channel layer.

`realtime.layers.RoomChannelLayer` is a `RoomLayer` itself; any other layer is wrapped in a
`realtime.layers.stock.StockLayer`. No other code asks which layer is configured.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

from realtime.layers.configured import channel_layer
from realtime.layers.history import NO_CURSOR, NO_LEASE, Appending, Cursor, Lease
from realtime.layers.listener import Listener
from realtime.layers.outlets import Ephemeral, Mailbox, Outlet
from realtime.layers.room_layer import RoomChannelLayer
from realtime.layers.stock import StockLayer
from realtime.protocol.publication import Draft
from realtime.redis.pipelining import Pipes


class RoomLayer(Protocol):
    """Rooms on a channel layer. A group is a room of a namespace (`realtime.protocol.rooms.group_name`)."""

    emit_waits: bool
    """Whether `emit` may wait for anything."""

    def prepare(
        self,
        pipes: Pipes,
        entries: Sequence[Draft],
        *,
        lease: Lease = NO_LEASE,
        cursor: Cursor = NO_CURSOR,
        again: str = "",
    ) -> Callable[[], Appending]:
        """Append entries to their rooms' histories and publish them (`realtime.layers.history.prepare_append`)."""

    async def attach(self, mailbox: Mailbox) -> str:
        """Return a new channel whose messages are handed to `mailbox`. Raises `redis.RedisError`."""

    def detach(self, channel: str) -> None:
        """End an attached channel: it leaves its groups and gets nothing more."""

    async def group_add(self, group: str, channel: str) -> None:
        """Add an attached channel to a group of messages. Raises `redis.RedisError`."""

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send a message to a group. Raises `redis.RedisError`."""

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send a message to a channel. Raises `redis.RedisError`."""

    async def enter(self, groups: Sequence[str], outlet: Outlet, channel: str) -> list[Listener]:
        """Enter rooms; returns a paused listener for each, at the room's end. Raises `redis.RedisError`."""

    def leave(self, listener: Listener, channel: str) -> None:
        """Leave a room: nothing of it is written any more."""

    async def missed(self, listener: Listener, since: str, opened_at: float = 0.0) -> int | None:
        """Count the publications after an offset that its connection will get; None when not all of them are known.

        No publication from before the connection was opened (Redis' clock, in seconds) leaves it out.

        The listener then stands at that offset, or at the room's end. Raises `redis.RedisError`.
        """

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        """Send an event that is stored nowhere. Raises `redis.RedisError`."""

    async def dead(self, channels: Sequence[str]) -> set[str]:
        """Return those channels whose instance is known to have ended. Raises `redis.RedisError`."""

    def when_restored(self, review: Callable[[float], Awaitable[None]]) -> None:
        """Await `review(seconds)` after messages to groups may have been lost for that time, if the layer knows."""


def room_layer(alias: str = "default") -> RoomLayer:
    """The channel layer of that name as a layer of rooms."""
    layer = channel_layer(alias)
    return layer if isinstance(layer, RoomChannelLayer) else _around(layer)


_around = lru_cache(StockLayer)
"""The one wrapper of a layer."""
