"""How fast somebody may go: a token bucket (Turner, "New Directions in Communications", 1986)."""

from __future__ import annotations

PAUSE_SECONDS = 1.0
"""Nothing refused for so long is a pause."""
PERSISTENT_SECONDS = 10.0
"""Refused for so long without a pause is persistence."""


class Bucket:
    """Lets `burst` pass at once and `rate` a second after that; a rate of 0 lets everything pass."""

    __slots__ = ("_refused_at", "_refused_since", "_seen_at", "_spent")

    def __init__(self) -> None:
        self._spent = 0.0
        self._seen_at = 0.0
        self._refused_since = self._refused_at = float("-inf")

    def take(self, now: float, rate: float, burst: float) -> float:
        """0 when one more may pass at `now` (seconds of any clock that only goes forward), else the seconds to wait."""
        if not rate:
            return 0.0
        spent = max(0.0, self._spent - (now - self._seen_at) * rate)
        self._seen_at = now
        self._spent = spent
        most = max(burst, 1.0)
        if spent + 1 > most:
            if now - self._refused_at > PAUSE_SECONDS:
                self._refused_since = now
            self._refused_at = now
            return (spent + 1 - most) / rate
        self._spent = spent + 1
        return 0.0

    def spend(self, now: float, rate: float, cost: float) -> None:
        """Take `cost` at once, also what is not there: no more passes until that is made up for."""
        if rate:
            self._spent = max(0.0, self._spent - (now - self._seen_at) * rate) + cost
            self._seen_at = now

    @property
    def is_persistent(self) -> bool:
        """Whether it has gone on and on, although refused."""
        return self._refused_at - self._refused_since >= PERSISTENT_SECONDS
