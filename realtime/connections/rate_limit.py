"""Rate limits: a token bucket (Turner, "New Directions in Communications", 1986), and that of a connection's frames."""

from __future__ import annotations

from realtime.conf import conf
from realtime.tasks.running import running_loop

PAUSE_SECONDS = 1.0
"""Seconds without a refusal that are a pause."""
PERSISTENT_SECONDS = 10.0
"""Seconds of refusals without a pause that are persistence."""
ROOM_COST = 0.5
"""What each room costs that is looked up because of a frame, in frames. A `join` includes one."""
UNIT_BYTES = 16 * 1024
"""Bytes, of a frame or sent because of it, that cost as much as one more frame."""
NEVER = float("-inf")


class Bucket:
    """Lets `burst` pass at once and `rate` a second after that; a rate of 0 lets everything pass."""

    __slots__ = ("_refused_at", "_refused_since", "_seen_at", "_spent")

    def __init__(self) -> None:
        self._spent = 0.0
        self._seen_at = 0.0
        self._refused_since = self._refused_at = NEVER

    def take(self, now: float, rate: float, burst: float, cost: float = 1.0) -> float:
        """Returns 0 if one more may pass at `now` (seconds of a monotonic clock), else how many seconds to wait.

        What costs more than 1 passes all the same, and delays the next.
        """
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
        self._spent = spent + cost
        return 0.0

    def spend(self, now: float, rate: float, cost: float) -> None:
        """Take `cost` at once, even if it is more than is left: nothing passes until that is made up for."""
        if rate:
            self._spent = max(0.0, self._spent - (now - self._seen_at) * rate) + cost
            self._seen_at = now

    @property
    def is_persistent(self) -> bool:
        """Whether takers have gone on for `PERSISTENT_SECONDS` although refused."""
        return self._refused_at - self._refused_since >= PERSISTENT_SECONDS


def frame_cost(size: int) -> int:
    """What a frame of `size` bytes costs: more than 1 for a large one."""
    return 1 + size // UNIT_BYTES


class FrameRate:
    """The rate limit of one connection's frames (`RATE`, `BURST`), to which their cost is charged, too."""

    __slots__ = ("_bucket",)

    def __init__(self) -> None:
        self._bucket: Bucket | None = None
        """Made when the first frame comes: an idle connection has none."""

    def take(self, size: int) -> float:
        """Count one frame of `size` bytes. Returns 0, or how many seconds it came too early."""
        limits = conf().limits
        return self._made().take(running_loop().time(), limits.rate, limits.burst, frame_cost(size))

    @property
    def is_persistent(self) -> bool:
        """Whether the client has gone on for `PERSISTENT_SECONDS` although refused."""
        return self._bucket is not None and self._bucket.is_persistent

    def spend(self, frames: float) -> None:
        """Charge the cost of a frame: later frames are refused until that is made up for."""
        self._made().spend(running_loop().time(), conf().limits.rate, frames)

    def spend_rooms(self, number: int) -> None:
        """`spend` for rooms that are looked up because of a frame."""
        self.spend(number * ROOM_COST)

    def spend_bytes(self, size: int) -> None:
        """`spend` for bytes that are sent because of a frame."""
        self.spend(size / UNIT_BYTES)

    def _made(self) -> Bucket:
        if self._bucket is None:
            self._bucket = Bucket()
        return self._bucket
