"""The instance measures itself every second: the lag of its event loop, the answer of Redis, and the backlog."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import perf_counter

from redis.exceptions import RedisError

from realtime.redis.client import client, is_cancelled
from realtime.tasks.supervision import supervise
from realtime.telemetry import metrics
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

SECONDS = 1.0
"""Between two measurements."""
PATIENCE = 5.0
"""A Redis that needs longer for a PING counts as down."""


async def watch(*measures: Callable[[], None]) -> None:
    """Measure until cancelled. Each of `measures` sets metrics of its own."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervise("vitals", lambda: _watch_loop(measures)), name="vitals")
        tasks.create_task(supervise("redis vitals", _watch_redis), name="redis vitals")


async def _watch_loop(measures: tuple[Callable[[], None], ...]) -> None:
    while True:
        # Not the loop's own clock, which stands still within a turn.
        started = perf_counter()
        await asyncio.sleep(SECONDS)
        metrics.LOOP_LAG.observe(max(perf_counter() - started - SECONDS, 0.0))
        metrics.TASKS.set(len(asyncio.all_tasks()))
        for measure in measures:
            measure()
        metrics.tally.flush()


async def _watch_redis() -> None:
    is_up = True
    while not is_cancelled():
        started = perf_counter()
        try:
            async with asyncio.timeout(PATIENCE):
                await client().ping()
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            metrics.REDIS_UP.set(0)
            if is_up:  # without a client, nothing else would say that the password is wrong
                logger.warning("redis cannot be used", extra={"error": spelled(error)})
            is_up = False
        else:
            metrics.REDIS_UP.set(1)
            metrics.REDIS_SECONDS.observe(perf_counter() - started)
            if not is_up:
                logger.info("redis can be used again")
            is_up = True
        await asyncio.sleep(SECONDS)
