"""The sweeper makes the changes that are due: leases and grace periods that ended, heartbeats that were not sent.

Any number of sweepers may run at once: each change is made by one atomic script, and so happens once.
"""

from __future__ import annotations

import asyncio
import logging
import random

import msgspec
from redis.exceptions import RedisError

from presence import store
from presence.namespaces import with_presence
from realtime.conf import conf
from realtime.redis import schema_version
from realtime.redis.client import is_cancelled
from realtime.tasks.supervision import supervise
from realtime.telemetry import metrics
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)


class Sweeper:
    """Sweeps until cancelled."""

    async def run(self) -> None:
        """Never returns; raises nothing but `asyncio.CancelledError`."""
        await supervise("sweeper", self._run)

    async def _run(self) -> None:
        while not is_cancelled():
            try:
                await self.sweep()
            except RedisError as error:
                logger.warning("sweep failed", extra={"error": spelled(error)})
            await asyncio.sleep(conf().batch_interval * random.uniform(0.8, 1.0))  # noqa: S311

    async def sweep(self) -> int:
        """Make all changes that are due, call by call, and return their number. Raises `redis.RedisError`."""
        await schema_version.claim()
        changed = 0
        for namespace in with_presence():
            more = True
            while more and not is_cancelled():
                swept = await self._sweep_some(namespace)
                changed, more = changed + swept.changed, swept.more
        if changed:
            logger.info("presence swept", extra={"changed": changed})
        return changed

    @staticmethod
    async def _sweep_some(namespace: str) -> store.Swept:
        _, (measured, swept) = await store.apply(namespace, [{"does": "measure"}, {"does": "sweep"}])
        _export(namespace, msgspec.json.decode(measured, type=store.Measure))
        found = msgspec.json.decode(swept, type=store.Swept)
        if found.failed:
            metrics.TASK_FAILURES.labels("sweeper").inc(found.failed)
            logger.error("presence changes failed", extra={"failed": found.failed})
        return found


def _export(namespace: str, measure: store.Measure) -> None:
    metrics.PRESENT.labels(namespace, "online").set(measure.online)
    metrics.PRESENT.labels(namespace, "away").set(measure.away)
    if measure.late:
        metrics.SWEEP_LAG.observe(measure.late / 1000)
