"""Redis' clock between two readings: the clock of the event loop, which is never set, stands for it."""

from __future__ import annotations

from realtime.tasks.per_loop import PerLoop
from realtime.tasks.running import running_loop


class RedisClock:
    """How far Redis' clock is ahead of that of the event loop, as of the last reading.

    Redis' clock may be set, so each instance reads it regularly (`realtime.layers.liveness`).
    """

    def __init__(self) -> None:
        self._ahead = 0.0

    def set(self, seconds: float) -> None:
        """Redis' clock showed this a moment ago (seconds since the epoch)."""
        self._ahead = seconds - running_loop().time()

    def now(self) -> float:
        """Seconds since the epoch."""
        return running_loop().time() + self._ahead


redis_clock: PerLoop[RedisClock] = PerLoop(RedisClock, lambda _: None)
"""That of the running loop."""
