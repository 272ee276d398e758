"""Simulated time: nothing takes any, and it jumps to whatever happens next."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import count
from typing import Any
from unittest.mock import patch

EPOCH = 1_900_000_000.0
"""Seconds since 1970 when a simulation begins."""

Action = Callable[..., Any]


class Event:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("action", "arguments")

    def __init__(self, action: Action | None, arguments: tuple[Any, ...]) -> None:
        self.action = action
        self.arguments = arguments

    def cancel(self) -> None:
        self.action = None
        self.arguments = ()


class Clock:
    """What time it is, and what happens when. What is due at the same time happens in the order of asking."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        """Everything that has happened, callbacks of hosts included."""
        self.skew = 0.0
        """How far ahead of the true time the clock of the host is whose turn it is."""
        self.failure: BaseException | None = None
        """Ends the simulation."""
        self._queue: list[tuple[float, int, Event]] = []
        self._numbers = count()

    def at(self, when: float, action: Action, *arguments: Any) -> Event:
        event = Event(action, arguments)
        heappush(self._queue, (when, next(self._numbers), event))
        return event

    def after(self, seconds: float, action: Action, *arguments: Any) -> Event:
        return self.at(self.now + seconds, action, *arguments)

    def stop(self) -> None:
        """Nothing happens any more."""
        self._queue.clear()

    def run(self, *, until: float = float("inf"), steps: float = float("inf")) -> None:
        """Let things happen until that time, or until so many steps have been done altogether."""
        queue = self._queue
        while queue and queue[0][0] <= until and self.steps < steps and self.failure is None:
            when, _, event = heappop(queue)
            if event.action is not None:
                self.now = max(self.now, when)
                self.steps += 1
                event.action(*event.arguments)
        if self.failure is not None:
            raise self.failure
        if until != float("inf") and self.steps < steps:
            self.now = max(self.now, until)


@contextmanager
def simulated(clock: Clock, seed: int) -> Iterator[None]:
    """Everything in this process that asks for the time or for chance gets what the simulation says."""
    entropy = random.Random(seed)

    def wall() -> float:
        return EPOCH + clock.now + clock.skew

    def monotonic() -> float:
        return clock.now

    state = random.getstate()
    random.seed(seed)
    try:
        with (
            patch.object(time, "time", wall),
            patch.object(time, "monotonic", monotonic),
            patch("os.urandom", entropy.randbytes),
        ):
            yield
    finally:
        random.setstate(state)
