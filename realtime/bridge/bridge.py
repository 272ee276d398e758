"""From the bus to the rooms.

The streams are read in order, in batches: one batch in flight, the next only after the one before succeeded, and on
any error the same entries again, fewer at once. What makes a repetition harmless is not the reader but the script that
appends (`append.lua`): in every room it leaves out what is not above the room's last entry of that stream. So any
number of bridges may run, and any of them may die at any moment. A lease only spares Redis the work of all but one; who
holds it is of no matter to correctness, except for a Pub/Sub message without an id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Collection, Sequence
from itertools import groupby
from typing import Any

from redis.exceptions import OutOfMemoryError, RedisError

from realtime.auth.revocation import now
from realtime.bridge.batch import Batch, drop, in_batches
from realtime.bridge.bus_handlers import Handlers
from realtime.bridge.guard import StreamGuard
from realtime.bridge.inbox import Inbox
from realtime.bridge.incoming import CHANNEL, Incoming, Source, entry_order, milliseconds, published
from realtime.layers.history import NO_LEASE
from realtime.layers.interface import room_layer
from realtime.redis import schema_version
from realtime.redis.client import client, is_cancelled, key
from realtime.redis.lease import Lease
from realtime.redis.pipelining import Pipes
from realtime.redis.pubsub import Message
from realtime.redis.sharded_pubsub import Subscriptions
from realtime.redis.stream_reader import READ_BLOCK, READ_MOST, Reading, ReadSize, as_list, reading
from realtime.redis.topology import topology
from realtime.tasks.supervision import report, supervise
from realtime.telemetry import metrics, tracing
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

LEASE_SECONDS = 1.0
AGAIN_MILLISECONDS = 30_000
"""Longer than a Cluster takes to replace a server: cluster-node-timeout (15 s by default), and an election."""
LAG_SECONDS = 1.0
"""A bridge so far behind says so, as often as that."""
TRIM_SECONDS = 60.0


class Bridge:
    """Delivers what its sources and the Pub/Sub channel bring, until cancelled."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = {key(source.name).encode(): source for source in sources}
        self._guards: list[StreamGuard] = []
        self.ready = asyncio.Event()
        """Set once subscribed, and either caught up or standing by."""
        self._lease = Lease("bridge", LEASE_SECONDS)
        self._layer = room_layer()
        self._handlers = Handlers()
        self._subscribed = asyncio.Event()
        self._inbox = Inbox()
        self._published_at = 0
        """The last time given to what came over Pub/Sub, in microseconds."""
        self._cursors: dict[bytes, bytes] = {}
        self._again: dict[bytes, str] = {}
        """Up to where a stream was delivered before and is delivered again."""
        self._size = ReadSize()
        self._failures = 0
        """Since something last succeeded."""
        self._in_flight: asyncio.Task[float | None] | None = None
        self._trim_at = 0.0
        self._lag = 0.0
        self._lag_said_at = 0.0
        """0: not since it last caught up."""
        self._leading = False
        metrics.LEADING.set(0)

    async def run(self) -> None:
        """Never returns; raises nothing but `asyncio.CancelledError`."""
        tracing.start()
        subscriptions = Subscriptions(self._on_messages, _ignore, _ignore, sharded=False)
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, work in (
                    ("subscribe", lambda: self._subscribe(subscriptions)),
                    ("pubsub", self._deliver_published),
                    ("streams", self._forever),
                ):
                    tasks.create_task(supervise(name, work), name=name)
        finally:
            subscriptions.close()
            with contextlib.suppress(RedisError):
                await self._lease.release()

    async def _forever(self) -> None:
        """Start again after a lost Redis: soon, then later and later up to a second, never all at once."""
        while not is_cancelled():
            try:
                await self._follow()
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
                        await self._trim()  # what was delivered long ago: forgetting is what it still allows
                await asyncio.sleep(random.uniform(0.05, min(1.0, 0.1 * 2 ** min(self._failures, 4))))  # noqa: S311

    # --- Streams ---------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Stand by, or deliver for as long as the lease is ours."""
        await schema_version.claim()
        if await self._lease.hold():
            await self._lead()
            return
        await self._be_ready()
        await asyncio.sleep(READ_BLOCK * random.uniform(0.5, 1.0))  # noqa: S311

    async def _lead(self) -> None:
        servers = topology()
        self._in_flight = None
        # Once: a Redis that takes over may have lost what moved the cursors.
        with contextlib.closing(Pipes(once=True)) as pipes, contextlib.closing(reading(pipes)) as streams:
            servers.on_arrival.add(pipes.close)  # then begin again
            try:
                await servers.known()
                await self._begin()
                found = streams.read(self._cursors, self._size.count)
                while await self._lease.hold() and not (is_cancelled() or pipes.is_closed):
                    found = await self._deliver(pipes, streams, as_list(await found))
            except RedisError:
                self._size.failed()
                raise
            finally:
                if self._leading:
                    logger.info("standing by")
                self._leading = False
                metrics.LEADING.set(0)
                servers.on_arrival.discard(pipes.close)

    async def _begin(self) -> None:
        """Go on where the bridge before ended.

        In a Cluster its cursor may know more than the rooms: a replica that took one over has not got the newest
        publications, and the cursor is on another server. So a little is done again there; rooms leave out what they
        have.
        """
        self._cursors = await self._read_cursors()
        # Anew: a Redis that took over may know neither of the group of a stream nor that it has had one.
        self._guards = [StreamGuard(source) for source in self.sources.values() if source.is_public]
        self._again = {stream: entry_order(cursor) for stream, cursor in self._cursors.items()}
        if not topology().spans_keys:
            for stream, cursor in self._cursors.items():
                self._cursors[stream] = b"%d-0" % max(milliseconds(cursor) - AGAIN_MILLISECONDS, 0)
        self._leading = True
        metrics.LEADING.set(1)
        logger.info(
            "delivering", extra={"cursors": {k.decode(): v.decode() for k, v in self._cursors.items()}}
        )

    async def _read_cursors(self) -> dict[bytes, bytes]:
        """Where to go on; at the beginning when no bridge ever read the stream."""
        saved: Sequence[Any] = await client().hmget(key("cursors"), list(self.sources))
        return {stream: cursor or b"0-0" for stream, cursor in zip(self.sources, saved, strict=True)}

    async def _deliver(
        self, pipes: Pipes, streams: Reading, found: Sequence[tuple[bytes, list[Any]]]
    ) -> Awaitable[Any]:
        """Deliver what was read; returns the next read, which is on its way meanwhile."""
        found = await self._admit(pipes, found)
        for stream, entries in found:
            self._cursors[stream] = entries[-1][0]
        is_busy = self._size.adapt(found)
        following = streams.read(self._cursors, self._size.count) if is_busy else None
        for stream, entries in found:
            await self._deliver_entries(pipes, stream, entries)
        self._say_lag(is_busy)
        if following is None:
            if not found:
                await self._settle()
                await self._be_ready()
            if asyncio.get_running_loop().time() >= self._trim_at:
                await self._trim()
            # In the same write as the batch: a message that comes alone costs one round trip. How the batch went is
            # looked at before the next one, or when nothing has come for a while.
            following = streams.read(self._cursors, self._size.count, wait=self.ready.is_set())
            pipes.flush()
        return following

    async def _admit(
        self, pipes: Pipes, found: Sequence[tuple[bytes, list[Any]]]
    ) -> Sequence[tuple[bytes, list[Any]]]:
        """What of this may be delivered."""
        read = dict(found)
        for guard in self._guards:
            if guard.is_due(read.get(guard.stream, ())):
                await self._settle()
                await guard.check(pipes, self._cursors[guard.stream])
            if guard.stream in read:
                read[guard.stream] = guard.admit(read[guard.stream])
        return [(stream, entries) for stream, entries in read.items() if entries]

    async def _deliver_entries(self, pipes: Pipes, stream: bytes, entries: Sequence[Any]) -> None:
        source, again = self.sources[stream], self._again[stream]
        incoming = [source.incoming(entry_id, fields, again) for entry_id, fields in entries]
        for part in in_batches(incoming, self._handlers):
            batch = Batch(part, self._layer, again=again)
            await self._settle()  # one batch in flight, the next only after the one before succeeded
            if any(message.error or self._handlers.concern(message) for message in part):
                await self._handle(pipes, part)
            self._in_flight = batch.send(pipes, cursor=(key("cursors"), stream, part[-1].id))

    async def _handle(self, pipes: Pipes, messages: Sequence[Incoming]) -> None:
        """Renew the lease meanwhile: handlers may take longer than it lasts."""
        handling = asyncio.create_task(self._handlers.run(pipes, messages), name="handle")
        try:
            while not handling.done():
                await self._lease.hold()
                await asyncio.wait([handling], timeout=LEASE_SECONDS / 4)
        finally:
            handling.cancel()
        handling.result()

    async def _settle(self) -> None:
        if self._in_flight is not None:
            in_flight, self._in_flight = self._in_flight, None
            if (lag := await in_flight) is not None:
                self._lag = lag
            self._failures = 0

    def _say_lag(self, is_busy: bool) -> None:
        """Tell every second how far behind what was just delivered is, and when there is no more."""
        loop_time = asyncio.get_running_loop().time()
        if is_busy and self._lag > LAG_SECONDS and loop_time >= self._lag_said_at + LAG_SECONDS:
            self._lag_said_at = loop_time
            logger.warning("behind", extra={"seconds": round(self._lag, 1)})
        elif self._lag_said_at and not is_busy:
            self._lag_said_at = 0.0
            logger.info("caught up")

    async def _trim(self) -> None:
        """Forget what is behind the cursors and old enough."""
        self._trim_at = asyncio.get_running_loop().time() + TRIM_SECONDS
        for stream, cursor in (await self._read_cursors()).items():
            oldest = min(milliseconds(cursor), int((await now() - self.sources[stream].keep) * 1000))
            # Without a limit of its own, Redis stops after 10,000 entries: less than a busy minute brings.
            await client().xtrim(stream, minid=oldest, limit=0)
        await schema_version.claim()  # again, in case that Redis was wiped

    # --- Pub/Sub ---------------------------------------------------------------------------------

    async def _subscribe(self, subscriptions: Subscriptions) -> None:
        await subscriptions.subscribe([key(CHANNEL).encode()])
        self._subscribed.set()

    async def _be_ready(self) -> None:
        await self._subscribed.wait()
        self.ready.set()

    def _on_messages(self, messages: Sequence[Message]) -> None:
        """A message that arrives while no bridge leads is lost, as Pub/Sub goes."""
        if self._leading:
            self._inbox.put([raw for _, raw in messages])

    async def _deliver_published(self) -> None:
        """Deliver what was published, in order, as many together as wait."""
        with contextlib.closing(Pipes()) as pipes:
            while not is_cancelled():
                incoming = [published(raw) for raw in await self._inbox.take(READ_MOST)]
                for part in in_batches(incoming, self._handlers):
                    for has_id, messages in groupby(part, _has_id):
                        # Without an id nothing but the lease keeps a message from coming twice.
                        await self._publish(pipes, list(messages), NO_LEASE if has_id else self._lease.fence)

    async def _publish(self, pipes: Pipes, messages: Sequence[Incoming], lease: tuple[str, str]) -> None:
        """Deliver messages, or drop them: for the same reason nothing is tried twice."""
        try:
            if any(map(self._handlers.concern, messages)):
                # Each has a time of its own, by Redis' clock.
                first = max(int(await now() * 1e6), self._published_at + 1)
                self._published_at = first + len(messages) - 1
                messages = [message.added_at(at) for at, message in enumerate(messages, first)]
            await self._handlers.run(pipes, messages)
            await Batch(messages, self._layer).send(pipes, lease=lease)
        except Exception as error:
            if not isinstance(error, RedisError | OSError):
                report("pubsub")
            drop(len(messages), spelled(error))


def _has_id(message: Incoming) -> bool:
    """Whether its id keeps a message from being delivered twice."""
    return any(delivery.id for delivery in message.deliveries)


def _ignore(channels: Collection[bytes]) -> None:
    """What was published while the subscription was lost is lost, as Pub/Sub goes."""
