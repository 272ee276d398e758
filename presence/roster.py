"""Who is here: the connections of an instance, and the status of their users for a Redis that loses it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from presence import store
from presence.operations import Presentee
from presence.store import State
from realtime.layers.signals import PresenceChanged
from realtime.tasks.supervision import report

Registration = tuple[str, msgspec.Raw]
"""A user, and the operation that tells Redis of a connection of theirs, or of their grace period."""


class Roster:
    """The listed connections of an instance in one namespace, and what it knows of their users."""

    def __init__(self) -> None:
        self._present: dict[str, Presentee] = {}
        self._arriving: set[str] = set()
        """Connections whose own operation is on its way: nothing else registers them."""
        self._states: dict[str, State] = {}
        self._in_grace: dict[str, tuple[Presentee, float]] = {}

    def __contains__(self, connection_id: str) -> bool:
        return connection_id in self._present

    def put(self, presentee: Presentee) -> None:
        """A connection is here, with these groups and this name."""
        self._present[presentee.connection_id] = presentee

    def arrive(self, presentee: Presentee) -> None:
        """A connection opens: nothing else registers it before `arrived`."""
        self._arriving.add(presentee.connection_id)

    def arrived(self, presentee: Presentee) -> None:
        """Redis has answered to a connection, or failed."""
        self._arriving.discard(presentee.connection_id)

    def remove(self, connection_id: str) -> Presentee | None:
        """A connection is over. Returns it if it was here."""
        return self._present.pop(connection_id, None)

    # --- Users -----------------------------------------------------------------------------------

    def begin_grace(self, presentee: Presentee, until: float) -> None:
        """The last connection of a user was lost; the grace period ends at `until` (loop time)."""
        self._in_grace[presentee.user_id] = (presentee, until)

    def end_grace(self, user_id: str) -> None:
        """The user is back."""
        self._in_grace.pop(user_id, None)

    def end_grace_periods(self, now: float) -> None:
        """Forget users whose grace period is over; they are in the order in which it ends."""
        while self._in_grace:
            user, (_, until) = next(iter(self._in_grace.items()))
            if until > now:
                return
            del self._in_grace[user]
            self._states.pop(user, None)

    def note(self, user_id: str, answer: str) -> None:
        """Remember the state in the answer to an operation, if there is one."""
        try:
            if known := store.state(answer):
                self._states[user_id] = known
        except msgspec.DecodeError:
            report("presence")

    def change(self, signal: PresenceChanged) -> None:
        """A status was changed by another instance, by the sweeper or over the bus."""
        if signal.status == "offline":
            self._states.pop(signal.user_id, None)
            self._in_grace.pop(signal.user_id, None)
        elif signal.user_id in self._states:
            self._states[signal.user_id] = State(signal.status, signal.chosen, signal.since)

    # --- Registrations ---------------------------------------------------------------------------

    def registrations(self, *, wiped: bool, now: float) -> list[Registration]:
        """Everything that Redis must be told; after it was `wiped`, grace periods as well."""
        found = [*self.registered(self._present, wiped=wiped)]
        return [*found, *self._grace_periods(now)] if wiped else found

    def registered(self, connection_ids: Iterable[str], *, wiped: bool) -> Iterator[Registration]:
        """How Redis is told of connections that are open already. One that can't be encoded is left out."""
        for connection_id in connection_ids:
            presentee = self._present.get(connection_id)
            if presentee is None or connection_id in self._arriving:
                continue
            operation = presentee.connect()
            if known := self._states.get(presentee.user_id):
                operation |= {"restored": known, "silent": wiped}
            try:
                yield presentee.user_id, store.encode(operation)
            except Exception:
                report("presence")

    def _grace_periods(self, now: float) -> Iterator[Registration]:
        for user, (presentee, until) in self._in_grace.items():
            if user in self._states:
                grace = {
                    "does": "grace",
                    "user": user,
                    "name": presentee.name,
                    "groups": presentee.groups,
                    "restored": self._states[user],
                    "remaining": int((until - now) * 1000),
                }
                yield user, store.encode(grace)
