"""What the tests of connections share."""

from __future__ import annotations

import math
from typing import Any

from realtime.connections.registry import ConnectionRegistry
from realtime.layers.signals import Signal, broadcast
from realtime.protocol.close_codes import CloseCode
from tests.inprocess import PATIENCE


def consumer() -> Any:
    """The one connection of this process, from inside."""
    (only,) = ConnectionRegistry.current().connections.values()
    return only


class Connection:
    """What a registry knows of a connection, and the orders it got."""

    def __init__(
        self,
        connection_id: str,
        user_id: str = "7",
        namespace: str = "hub",
        jti: str = "j",
        at: float = 100.0,
    ) -> None:
        self.connection_id = connection_id
        self.user = (namespace, user_id)
        self.principal: Any = type("Principal", (), {"jti": jti})
        self.opened_at = at
        self.orders: list[tuple[str, tuple[Any, ...]]] = []
        self.entered_before: list[float] = []
        """Only a member who entered before then was to be expelled."""
        self.reviews: list[BaseException | None] = []
        """What is to happen at the next reviews: an error, or that it succeeds."""
        self.reviewed = 0

    def terminate(self, code: CloseCode, reason: str = "") -> None:
        self.orders.append(("terminate", (code, reason)))

    def user_disconnected(self, at: float, reason: str) -> None:
        if self.opened_at <= at:
            self.terminate(CloseCode.REVOKED, reason)

    async def review(self) -> None:
        self.reviewed += 1
        if self.reviews and (error := self.reviews.pop(0)):
            raise error

    def expel(self, room: str, reason: str, *, before: float = math.inf) -> None:
        self.orders.append(("expel", (room, reason)))
        self.entered_before.append(before)


def enter(registry: ConnectionRegistry, *connections: Any) -> None:
    for connection in connections:
        registry.add(connection)


async def tell(registry: ConnectionRegistry, signal: Signal) -> None:
    """Broadcast, and wait until this registry has acted on it."""
    await broadcast(signal)
    await registry.probe(PATIENCE)
