"""Events that wait for a connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .connection import Connection, Take
from .errors import CallFailed

EPHEMERAL = frozenset({"typing:start", "typing:stop", "cursor:move", "heartbeat"})
"""Events that are worth nothing later: unless an answer is expected, they never wait for a connection."""


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """An event, and what is to be done with its answer if one is expected."""

    event: str
    data: Mapping[str, Any]
    take: Take | None = None

    def put(self, connection: Connection) -> None:
        """Have it written. Raises `CallFailed` if it is too large and nothing takes an answer."""
        if self.take is None:
            connection.put_event(self.event, self.data)
        else:
            connection.ask(self.event, self.data, self.take)


class Queue:
    """What waits, in order, and at most so much of it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: list[Waiting] = []

    def add(self, waiting: Waiting) -> None:
        """Raises `CallFailed` if there is no room for it."""
        if waiting.take is None and waiting.event in EPHEMERAL:
            return
        if len(self._waiting) >= self._most:
            failure = f"{waiting.event} was not sent: {len(self._waiting)} events wait already"
            raise CallFailed("queue_full", failure)
        self._waiting.append(waiting)

    def discard(self, waiting: Waiting) -> None:
        """Forget one whose caller has given up."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def take_all(self) -> list[Waiting]:
        """Empty it, and return what was in it."""
        taken, self._waiting = self._waiting, []
        return taken

    def clear(self, reason: str) -> int:
        """Forget everything, and return how many were lost without an answer. Calls fail with `closed`."""
        taken = self.take_all()
        for waiting in taken:
            if waiting.take is not None:
                waiting.take(CallFailed("closed", f"{waiting.event} was not sent: {reason}"))
        return sum(waiting.take is None for waiting in taken)
