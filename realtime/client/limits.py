"""What the server allows a connection, as `connection:ready` announces it, and how a client stays within it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

BURST_SHARE, RATE_SHARE = 0.5, 0.8
"""How much of what is allowed is used. Frames that were sent apart may arrive together, and pings count, too."""

LARGEST = 1e12
"""A larger number is no limit, and no time, that a server means."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a connection; 0: none."""

    frame_bytes: int = 0
    rate: float = 0.0
    burst: int = 0

    @classmethod
    def of(cls, ready: Mapping[str, Any]) -> Self:
        """Those that a `connection:ready` announces; a server that announces none is not known to have any."""
        found = ready.get("limits")
        if not isinstance(found, Mapping):
            return cls()
        return cls(*(positive(found.get(name)) for name in ("frame_bytes", "rate", "burst")))


def positive(value: Any) -> Any:
    """A number that a server has sent; 0, which means that there is none, for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 < value <= LARGEST else 0


class Pace:
    """A token bucket: `turn` returns when another frame may be written."""

    def __init__(self, limits: Limits) -> None:
        self._rate = limits.rate * RATE_SHARE
        self._most = max(limits.burst * BURST_SHARE, 1.0)
        self._free = self._most
        self._counted_at = asyncio.get_running_loop().time()

    async def turn(self) -> None:
        """Wait for the next frame's turn."""
        if not self._rate:
            return
        self._count()
        if self._free < 1:
            await asyncio.sleep((1 - self._free) / self._rate)
            self._count()
        self._free -= 1

    def _count(self) -> None:
        now = asyncio.get_running_loop().time()
        self._free = min(self._most, self._free + (now - self._counted_at) * self._rate)
        self._counted_at = now
