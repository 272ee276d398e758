"""Rooms: those that are wanted, those that the client is in, and its position in each."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .connection import Answer, Connection, Take
from .errors import CallFailed
from .event import Event
from .names import room_of
from .retries import LONGEST_SECONDS

TEMPORARY = frozenset({"unavailable", "rate_limited", "internal"})
"""Errors after which the same request may succeed a little later."""


class Rooms:
    """Enters the rooms that are wanted, over whatever connection there is, and resumes them on the next.

    `tell` takes the events that the client itself makes of it.
    """

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._connection: Connection | None = None
        self._wanted: Counter[str] = Counter()
        """Rooms that are wanted, and how often."""
        self._automatic = {"user", "presence"}
        """Kinds of rooms that the server enters by itself. Rooms of all others are wanted, or not kept."""
        self._offsets: dict[str, str] = {}
        """The offset of the last publication that came from each room the client was in."""
        self._requests: dict[str, Take] = {}
        """By room, what takes the answer to the last request to enter or leave it: those before it do not count."""
        self._resuming: set[str] = set()
        """Rooms for which a `resume` has no answer yet."""
        self.entered: set[str] = set()
        """The rooms that the client is in now."""

    @property
    def can_resume(self) -> bool:
        """Whether there is a room to resume."""
        return bool(self._offsets)

    # --- The connection --------------------------------------------------------------------------

    def begin(self, connection: Connection, offered: Mapping[str, str]) -> None:
        """Resume and enter rooms over a new connection, which is in the rooms `offered` (with their offsets)."""
        self._connection = connection
        self._resuming = set(self._offsets)
        self.entered = set(offered) - self._resuming
        self._offsets = {**offered, **self._offsets}
        self._resume(connection, self._offsets)
        self._automatic |= {_kind(room) for room in offered}
        for room in list(self._wanted):  # one whose frame is too large is forgotten at once
            if room not in self._resuming:
                self._request(connection, room)

    def end(self) -> None:
        """The connection has ended."""
        self._connection = None
        self.entered.clear()
        self._requests.clear()
        self._resuming.clear()

    def forget_positions(self, offered: Mapping[str, str]) -> None:
        """Forget what was received: it was meant for another user. The rooms that are wanted are entered anew.

        The server holds the rooms that it offers back for the `resume` that was announced to it, so they are resumed.
        """
        self._offsets = dict(offered)

    def forget_all(self) -> None:
        """Forget everything: there will be no connection any more."""
        self._wanted.clear()
        self._offsets.clear()

    def accept(self, room: str, offset: str) -> bool:
        """Take note of a publication; False if it will come again, after the answer to a `resume`."""
        if room in self._resuming:
            return False
        # Not before it was entered: what a room that was left still brings belongs to no position.
        if room in self.entered or _kind(room) in self._automatic:
            self._offsets[room] = offset
        return True

    # --- Entering and leaving --------------------------------------------------------------------

    def join(self, name: str | int) -> None:
        """Want a room once more: that of a thread by its id, or any by its name. Raises what `room_of` raises."""
        room = room_of(name)
        self._wanted[room] += 1
        if self._wanted[room] == 1 and self._connection is not None:
            self._request(self._connection, room)

    def leave(self, name: str | int) -> None:
        """Want a room once less. Raises what `room_of` raises."""
        room = room_of(name)
        if self._wanted[room] > 1:
            self._wanted[room] -= 1
        elif room in self._wanted:
            self.forget(room)
            if self._connection is not None:
                self._request(self._connection, room)

    def forget(self, room: str) -> None:
        """The client is not in a room any more, and does not want it."""
        self._offsets.pop(room, None)
        for rooms in (self.entered, self._resuming):
            rooms.discard(room)
        self._wanted.pop(room, None)
        self._requests.pop(room, None)

    def _is_wanted(self, room: str) -> bool:
        return room in self._wanted or _kind(room) in self._automatic

    def _request(self, connection: Connection, room: str) -> None:
        """Ask to enter or leave a room until that is granted, refused for good, or no longer wanted."""
        is_wanted = self._is_wanted(room)

        def take(answer: Answer) -> None:
            if self._requests.get(room) is not take:
                return
            if isinstance(answer, CallFailed) and answer.code in TEMPORARY:
                connection.spawn(_later(answer.retry_after, again))
                return
            del self._requests[room]
            if not isinstance(answer, CallFailed):
                if is_wanted:
                    self._enter(room, answer["offset"])
                    self._tell(Event("room:joined", {"room": room}))
            elif answer.code != "closed":
                self._refuse(room, answer.code)

        def again() -> None:
            if self._requests.get(room) is take:
                self._request(connection, room)

        self._requests[room] = take
        verb, (kind, _, id) = "join" if is_wanted else "leave", room.partition(":")
        if kind == "thread":  # servers of every version know these
            connection.ask(f"{verb}:thread", {"thread_id": id}, take)
        else:
            connection.ask(verb, {"room": room}, take)

    def _enter(self, room: str, offset: str) -> None:
        self.entered.add(room)
        self._offsets[room] = offset

    def _refuse(self, room: str, code: str) -> None:
        if self._is_wanted(room):
            self.forget(room)
            self._tell(Event("room:left", {"room": room, "reason": code}))

    # --- Recovery --------------------------------------------------------------------------------

    def _resume(self, connection: Connection, rooms: Iterable[str]) -> None:
        """Ask for what was missed until there is an answer: without one the client is in no room.

        Until then no publication of these rooms is accepted: it comes again.
        """

        def take(answer: Answer) -> None:
            if not isinstance(answer, CallFailed):
                for room, result in answer["rooms"].items():
                    self._recover(room, result)
                if failed := self._resuming & offsets.keys():
                    connection.spawn(_later(None, lambda: self._resume(connection, failed)))
            elif answer.code == "too_large":
                self._resume_halves(connection, list(offsets))
            elif answer.code != "closed":
                connection.spawn(_later(answer.retry_after, lambda: self._resume(connection, offsets)))

        offsets = {room: self._offsets[room] for room in rooms if room in self._resuming}
        if offsets:
            connection.ask("resume", {"rooms": offsets}, take)

    def _resume_halves(self, connection: Connection, rooms: Sequence[str]) -> None:
        """Resume so many rooms with more than one frame: in one they are more than the server takes."""
        half = len(rooms) // 2
        if not half:
            self._refuse(rooms[0], "too_large")
        else:
            self._resume(connection, rooms[:half])
            self._resume(connection, rooms[half:])

    def _recover(self, room: str, result: Mapping[str, Any]) -> None:
        if result.get("error") in TEMPORARY:
            return
        self._resuming.discard(room)
        if "error" in result:
            self._refuse(room, result["error"])
        elif self._is_wanted(room):
            self._enter(room, result["offset"])
            if not result["recovered"]:
                self._tell(Event("room:gap", {"room": room, "reason": "not recovered"}))


def _kind(room: str) -> str:
    return room.partition(":")[0]


async def _later(retry_after: float | None, action: Callable[[], None]) -> None:
    """Act when it may be granted, and not together with every other request: that may have been too fast."""
    await asyncio.sleep(min(retry_after or 1.0, LONGEST_SECONDS) + random.uniform(0, 1))  # noqa: S311
    action()
