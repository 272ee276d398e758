"""How the events of an open connection reach the application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, Protocol

from uvicorn.protocols.utils import ClientDisconnected

from realtime.connections.frame_outlet import Receiver

MOST_OPEN = 8
"""The most events of a connection that are handled at the same time. While there are as many, nothing is read."""


class Connection(Protocol):
    """As much of a connection as its dispatcher needs."""

    loop: asyncio.AbstractEventLoop
    tasks: set[asyncio.Task[None]]
    logger: logging.Logger
    transport: asyncio.Transport

    def read_on(self) -> None:
        """Go on reading: events have been handled."""


class Dispatcher:
    """Takes the place of a connection's queue: an event that has to wait gets a task, which ends with the event."""

    __slots__ = ("_connection", "open", "receiver")

    def __init__(self, connection: Connection, receiver: Receiver) -> None:
        self._connection = connection
        self.receiver = receiver
        self.open = 0
        """Events that are being handled; a large one counts several times."""

    @property
    def is_full(self) -> bool:
        """Whether no more events may come before one of these has been handled."""
        return self.open >= MOST_OPEN

    def put_nowait(self, message: dict[str, Any], weight: int = 1) -> None:
        """Handle an event. The receiver keeps the order of events that are handled at the same time."""
        if (rest := self._begin(message)) is None:
            return
        self.open += weight
        task = self._connection.loop.create_task(self._finish(rest, weight))
        self._connection.tasks.add(task)
        task.add_done_callback(self._connection.tasks.discard)

    def _begin(self, message: dict[str, Any]) -> Awaitable[None] | None:
        try:
            return self.receiver.take(message, is_alone=not self.open)
        except Exception as error:
            self._failed(error)
            return None

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, ClientDisconnected):
            self._connection.logger.error("Exception in ASGI application", exc_info=error)
            self._connection.transport.close()

    async def _finish(self, rest: Awaitable[None], weight: int) -> None:
        try:
            await rest
        except Exception as error:
            self._failed(error)
        finally:
            self.open -= weight
            if self.open <= MOST_OPEN / 2:
                self._connection.read_on()
