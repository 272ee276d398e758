"""The lag: how far behind the bus a bridge is."""

from __future__ import annotations

import asyncio
import logging

logger = logging.getLogger(__name__)

LAG_SECONDS = 1.0
"""A bridge that is further behind logs it, at most once in this time."""


class Lag:
    """Logs how far behind a bridge is while it is busy, and that it has caught up."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """From when the latest message was added until it was published."""
        self._logged_at = 0.0
        """0: not since the bridge last caught up."""

    def log(self, *, is_busy: bool) -> None:
        """Log what has changed; `is_busy`: there is more to read."""
        if is_busy and self.seconds > LAG_SECONDS:
            self._log_behind(asyncio.get_running_loop().time())
        elif self._logged_at and not is_busy:
            self._logged_at = 0.0
            logger.info("caught up")

    def _log_behind(self, now: float) -> None:
        if now >= self._logged_at + LAG_SECONDS:
            self._logged_at = now
            logger.warning("behind", extra={"seconds": round(self.seconds, 1)})
