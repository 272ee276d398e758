"""Redis' clock between two looks at it: the clock of the event loop stands for it, which is never set."""

from __future__ import annotations

from realtime.tasks.per_loop import PerLoop
from realtime.tasks.running import running_loop


class RedisClock:
    """How far Redis' clock is ahead of that of the event loop, as of the last look.

    Redis' clock may be set, so it is looked at again and again (`realtime.layers.liveness`).
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
