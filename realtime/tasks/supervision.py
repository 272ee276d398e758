"""Supervision: no exception ends a task that runs for as long as its process does.

Each task catches what it expects (Redis is away). Any other exception is a mistake in the code or an odd value, and
must not stop presence, the bridge or a timer for good.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from realtime.telemetry import metrics

logger = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds at most before a task that failed is started again."""


async def supervise(name: str, work: Callable[[], Awaitable[object]]) -> None:
    """Run `work` until it returns, and again after each exception. `name` labels a metric."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    while task is None or not task.cancelling():
        try:
            await work()
            return
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            report(name)  # this task was not cancelled: `work` raised it
        except Exception:
            if loop.is_closed():  # and this task was left behind in it
                return
            report(name)
        await asyncio.sleep(random.uniform(PAUSE / 2, PAUSE))  # noqa: S311


def report(name: str) -> None:
    """Log and count the exception that is being handled, where the work goes on without a restart."""
    metrics.TASK_FAILURES.labels(name).inc()
    logger.exception("task failed", extra={"task": name})  # noqa: LOG004  (called where it was caught)
