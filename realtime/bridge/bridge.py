"""The bridge: from the bus to the rooms.

Any number of bridges may run, and any of them may die at any moment. What makes a repetition harmless is the script
that appends (`append.lua`): in every room it leaves out what is not above the room's last entry of that stream. A lease
spares Redis the work of all bridges but one; which one holds it does not matter for correctness, except for a Pub/Sub
message without an id, which is delivered in the term of leading in which it was published, or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence

from redis.exceptions import OutOfMemoryError, RedisError

from realtime.bridge.bus_entry import Source
from realtime.bridge.bus_handlers import Handlers
from realtime.bridge.cursors import read_cursors, trim
from realtime.bridge.pubsub_listener import PubSubListener
from realtime.bridge.read_size import ReadSize
from realtime.bridge.stream_delivery import READ_BLOCK, StreamDelivery
from realtime.layers import direct
from realtime.redis import schema_version
from realtime.redis.client import is_cancelled, key
from realtime.redis.lease import Lease
from realtime.redis.topology import topology
from realtime.tasks.supervision import report, supervise
from realtime.telemetry import metrics, tracing
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

LEASE_SECONDS = 1.0


class Bridge:
    """Delivers what its sources and the Pub/Sub channel bring, as the leader or as a standby, until cancelled."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.ready = asyncio.Event()
        """Set once subscribed, and either caught up or a standby."""
        self._caught_up = asyncio.Event()
        self._sources = {source: ReadSize() for source in sources}
        self._lease = Lease("bridge", LEASE_SECONDS)
        self._handlers = Handlers()
        self._pubsub = PubSubListener(self._lease, self._handlers)
        self._failures = 0
        """Since something last succeeded."""
        self.is_leading = False
        """Whether this bridge delivers; else it is a standby."""
        metrics.LEADING.set(0)

    async def run(self) -> None:
        """Never returns; raises nothing but `asyncio.CancelledError`."""
        tracing.start()
        works = (("pubsub", self._pubsub.run), ("streams", self._run_streams), ("ready", self._be_ready))
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, work in works:
                    tasks.create_task(supervise(name, work), name=name)
        finally:
            self._pubsub.close()
            with contextlib.suppress(RedisError):
                await self._lease.release()

    async def _be_ready(self) -> None:
        await self._pubsub.subscribed.wait()
        await self._caught_up.wait()
        self.ready.set()

    async def _run_streams(self) -> None:
        """Start again after a failure: soon, then later and later up to a second, and at a time of its own."""
        while not is_cancelled():
            try:
                await self.lead_or_stand_by()
                self._failures = 0
            except Exception as error:
                self._failures += 1
                if isinstance(error, RedisError | OSError):
                    logger.warning(
                        "redis lost, trying again",
                        extra={"failures": self._failures, "error": spelled(error)},
                    )
                else:
                    report("streams")
                if isinstance(error, OutOfMemoryError):
                    with contextlib.suppress(RedisError):
                        await trim([*self._sources])  # a full Redis still allows that
                await asyncio.sleep(random.uniform(0.05, min(1.0, 0.1 * 2 ** min(self._failures, 4))))  # noqa: S311

    async def lead_or_stand_by(self) -> None:
        """Deliver for as long as the lease is ours, or stand by for a moment. Raises `redis.RedisError`."""
        await schema_version.claim()
        if await self._lease.hold():
            await self._lead()
        else:
            self._caught_up.set()
            await asyncio.sleep(READ_BLOCK * random.uniform(0.5, 1.0))  # noqa: S311

    async def _lead(self) -> None:
        """Deliver all streams until the lease or a connection to Redis is lost."""
        term = self._lease.fence
        await topology().known()
        await direct.allow(term)
        cursors = await read_cursors([*self._sources])

        def on_caught_up() -> None:
            if self._pubsub.is_leading and all(delivery.is_caught_up for delivery in deliveries):
                self._caught_up.set()

        deliveries = [
            StreamDelivery(source, cursor, size, self._handlers, term, on_caught_up)
            for (source, size), cursor in zip(self._sources.items(), cursors, strict=True)
        ]
        self._become(leading=True)
        logger.info(
            "delivering",
            extra={"cursors": {key(each.source.name): each.cursor.decode() for each in deliveries}},
        )
        works = [
            self._lease.keep(),
            self._pubsub.lead(term, on_caught_up),
            *[delivery.run() for delivery in deliveries],
        ]
        tasks = [asyncio.create_task(work, name="lead") for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if any(delivery.has_delivered for delivery in deliveries):
                self._failures = 0
            logger.info("standing by")
            self._become(leading=False)

    def _become(self, *, leading: bool) -> None:
        self.is_leading = leading
        metrics.LEADING.set(leading)
