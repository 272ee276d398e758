"""A connection as its parts, its outlet and the registry see it: they know this interface, and not the consumer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from realtime.connections.rate_limit import FrameRate
from realtime.layers.interface import RoomLayer
from realtime.layers.outlets import Outlet
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.namespaces import Namespace
from realtime.protocol.outgoing import OutgoingData
from realtime.survey import results
from realtime.tasks.serial import Action


class Connection(results.Connection, Protocol):
    """One connection of one user to one namespace."""

    channel_name: str
    layer: RoomLayer
    opened_at: float
    """Seconds of Redis' clock."""
    rate: FrameRate

    @property
    def namespace(self) -> str:
        """The name of the namespace it was opened to."""

    @property
    def declared(self) -> Namespace:
        """That namespace, as it is declared."""

    @property
    def outlet(self) -> Outlet:
        """Where its frames are written."""

    # --- What can be done with it ----------------------------------------------------------------

    def soon(self, action: Action, *args: Any) -> None:
        """Run `action` in the connection's turn."""

    def after(self, seconds: float, name: str, action: Action, *args: Any) -> None:
        """Run `action` in the connection's turn after `seconds`, instead of an earlier timer of this name."""

    def cancel(self, name: str) -> None:
        """Cancel a timer."""

    async def handle(self, message: Any) -> None:
        """Run the handler of one message, by a caller that has the turn."""

    def write_event(self, event: str, data: OutgoingData, *, id: str | int | None = None) -> int:
        """Write a frame to this connection alone; returns the number of bytes."""

    async def emit(self, room: str, event: str, **data: Any) -> None:
        """Send an ephemeral event to a room. Raises `redis.RedisError`."""

    def terminate(self, code: CloseCode, reason: str = "") -> None:
        """Close the connection now."""

    def user_disconnected(self, at: float, reason: str) -> None:
        """Close the connection if it was opened at `at` or before (seconds of Redis' clock)."""

    async def review(self) -> None:
        """Read the rights of the connection again, because a revocation may have been missed.

        Raises `redis.RedisError`.
        """

    def expel(self, room: str, reason: str, *, before: float = math.inf) -> None:
        """Take the connection out of a room now, if it entered before then (seconds of Redis' clock)."""

    # --- What its namespace decides --------------------------------------------------------------

    def initial_rooms(self) -> Sequence[str]:
        """The rooms that the token names."""

    async def may_enter(self, room: str) -> bool:
        """Whether the user may be in the room."""

    def joined_rooms(self) -> set[str]:
        """The rooms for which the user's right is read again."""

    def on_entered(self, room: str) -> None:
        """The connection has entered a room."""

    async def on_gap(self, room: str) -> None:
        """The client was told that publications of a room are lost."""
