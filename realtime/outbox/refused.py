"""Rows that Redis does not take although it takes others: too large for what lies between, or forbidden."""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from realtime.redis.bounded import now

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds until a row that failed is tried again. They double when other rows were sent in between."""


@dataclass(slots=True)
class _Refused:
    again_at: float
    pause: float
    is_alone: bool = False
    """Whether others were sent since it has failed."""


class RefusedRows:
    """The rows of one database that failed when they were sent alone. They, and what has to follow them, wait."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._rows: dict[int, _Refused] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._rows

    def __bool__(self) -> bool:
        return bool(self._rows)

    def ripe(self) -> int | None:
        """One that it is time to try again, by itself; None when there is none."""
        current = now()
        return next((number for number, row in self._rows.items() if row.again_at <= current), None)

    def on_failure(self, tried: AbstractSet[int], error: str) -> None:
        """These could not be sent together."""
        if len(tried) != 1:
            return
        (number,) = tried
        row = self._rows.pop(number, None) or _Refused(0.0, FIRST_PAUSE)
        if row.is_alone:
            row.pause, row.is_alone = min(row.pause * 2, LONGEST_PAUSE), False
            facts = {"database": self._using, "row": number, "error": error}
            logger.error("outbox: Redis takes others, but not this message", extra=facts)
        row.again_at = now() + row.pause
        self._rows[number] = row

    def on_sent(self, ids: AbstractSet[int]) -> None:
        """These were sent."""
        for number in ids:
            self._rows.pop(number, None)
        if ids:
            for row in self._rows.values():
                row.is_alone = True

    def forget(self, number: int) -> None:
        """It is not there any more."""
        self._rows.pop(number, None)
