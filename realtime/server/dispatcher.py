"""How the events of an open connection reach the application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.utils import ClientDisconnected

if TYPE_CHECKING:
    from realtime.server.websocket_protocol import WebSocketProtocol

MOST_OPEN = 8
"""The most events of a connection that are handled at the same time; until then nothing more is read from it."""

Take = Callable[[dict[str, Any]], Awaitable[None]]
Charge = Callable[[], float]


class Dispatcher:
    """Takes the place of a connection's queue: each event starts a task of its own, which ends with the event."""

    __slots__ = ("_protocol", "_take", "charge", "open")

    def __init__(self, protocol: WebSocketProtocol, take: Take, charge: Charge) -> None:
        self._protocol = protocol
        self._take = take
        self.charge = charge
        """Counts a frame, and returns how many seconds it came too early."""
        self.open = 0
        """Events that are being handled; a large one counts several times."""

    @property
    def is_full(self) -> bool:
        """Whether no more events may come before one of these has been handled."""
        return self.open >= MOST_OPEN

    def put_nowait(self, message: dict[str, Any], weight: int = 1) -> None:
        """Handle an event. `take` keeps the order of events that are handled at the same time."""
        self.open += weight
        task = self._protocol.loop.create_task(self._handle(message, weight))
        self._protocol.tasks.add(task)
        task.add_done_callback(self._protocol.tasks.discard)

    async def _handle(self, message: dict[str, Any], weight: int) -> None:
        try:
            await self._take(message)
        except ClientDisconnected:
            pass
        except Exception:
            self._protocol.logger.exception("Exception in ASGI application")
            self._protocol.transport.close()
        finally:
            self.open -= weight
            if self.open <= MOST_OPEN / 2:
                self._protocol.reader.read_on()
