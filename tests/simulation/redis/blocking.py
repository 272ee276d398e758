"""Commands that wait for news of a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.simulation.clock import Clock, Event
from tests.simulation.redis.keys import Keys
from tests.simulation.redis.session import NOTHING, Session


class Blocked:
    """A command that waits for news."""

    def __init__(
        self, session: Session, keys: Sequence[bytes], again: Callable[[], Any], timer: Event | None
    ) -> None:
        self.session = session
        self.keys = keys
        self.again = again
        self.timer = timer


class Blocking(Keys):
    """Lets sessions wait for news of a key."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._waiting: dict[bytes, list[Blocked]] = {}

    def wait(self, session: Session, keys: Sequence[bytes], again: Callable[[], Any], seconds: float) -> Any:
        if (reply := again()) is not None:
            return reply
        blocked = session.blocked = Blocked(session, keys, again, None)
        if seconds:
            blocked.timer = self.clock.after(seconds, self._give_up, blocked)
        for key in keys:
            self._waiting.setdefault(key, []).append(blocked)
        return NOTHING

    def unblock(self, blocked: Blocked) -> None:
        blocked.session.blocked = None
        if blocked.timer is not None:
            blocked.timer.cancel()
        for key in blocked.keys:
            if blocked in self._waiting.get(key, ()):
                self._waiting[key].remove(blocked)

    def _give_up(self, blocked: Blocked) -> None:
        self._answer(blocked, None)

    def _answer(self, blocked: Blocked, reply: Any) -> None:
        self.unblock(blocked)
        blocked.session.send(reply)
        blocked.session.go_on()

    def tell(self, key: bytes) -> None:
        """Answer the clients that wait for this key, once the command (or script) that runs is over."""
        if self._waiting.get(key):
            self.clock.after(0.0, self._look, key)

    def _look(self, key: bytes) -> None:
        for blocked in list(self._waiting.get(key, ())):
            if blocked.session.blocked is blocked and (reply := blocked.again()) is not None:
                self._answer(blocked, reply)
