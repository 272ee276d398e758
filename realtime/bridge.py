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
from collections.abc import Awaitable, Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

from redis.exceptions import OutOfMemoryError, RedisError

from realtime import layout, metrics, tracing
from realtime.batch import Batch, drop, in_batches
from realtime.handling import Handlers
from realtime.inbox import Inbox
from realtime.incoming import CHANNEL, Incoming, Source, entry_order, milliseconds, published
from realtime.lease import Lease
from realtime.logs import spelled
from realtime.membership import room_layer
from realtime.pipe import Pipes
from realtime.reading import READ_BLOCK, READ_MOST, Reading, ReadSize, as_list, reading
from realtime.redis import client, is_cancelled, key
from realtime.revocation import now
from realtime.roomlog import NO_LEASE
from realtime.subscription import Message
from realtime.subscriptions import Subscriptions
from realtime.supervision import report, supervise
from realtime.topology import topology

logger = logging.getLogger(__name__)

LEASE_SECONDS = 1.0
AGAIN_SECONDS = 30.0
"""Longer than a Cluster takes to replace a server: cluster-node-timeout (15 s by default), and an election."""
LAG_SECONDS = 1.0
"""A bridge so far behind says so, as often as that."""
TRIM_SECONDS = 60.0


class Bridge:
    """Delivers what its sources and the Pub/Sub channel bring, until cancelled."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = {key(source.name).encode(): source for source in sources}
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
        self._in_flight: Batch | None = None
        self._trim_at = 0.0
        self._lag = 0.0
        self._lag_said_at: float | None = None
        """None: not since it last caught up."""
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
            except (RedisError, OSError) as error:
                self._failures += 1
                logger.warning(
                    "redis lost, trying again",
                    extra={"failures": self._failures, "error": spelled(error)},
                )
                if isinstance(error, OutOfMemoryError):
                    await self._make_room()
                await asyncio.sleep(random.uniform(0.05, min(1.0, 0.1 * 2 ** min(self._failures, 4))))  # noqa: S311

    # --- Streams ---------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Stand by, or deliver for as long as the lease is ours."""
        await layout.claim()
        if await self._lease.hold():
            await self._lead()
            return
        await self._subscribed.wait()
        self.ready.set()
        await asyncio.sleep(READ_BLOCK * random.uniform(0.5, 1.0))  # noqa: S311

    async def _lead(self) -> None:
        pipes = Pipes()
        streams = reading(pipes)
        self._in_flight = None
        servers = topology()
        try:
            await servers.known()
            servers.on_arrival.add(pipes.close)  # then begin again
            await self._begin()
            self._leading = True
            metrics.LEADING.set(1)
            logger.info(
                "delivering", extra={"cursors": {k.decode(): v.decode() for k, v in self._cursors.items()}}
            )
            found = streams.read(self._cursors, self._size.count)
            while (self._lease.is_fresh or await self._lease.hold()) and not (
                is_cancelled() or pipes.is_closed
            ):
                found = await self._deliver(pipes, streams, as_list(await found))
        except RedisError:
            self._size.failed()
            raise
        finally:
            if self._leading:
                logger.info("standing by")
            self._leading = False
            metrics.LEADING.set(0)
            streams.close()
            pipes.close()
            servers.on_arrival.discard(pipes.close)

    async def _begin(self) -> None:
        """Go on where the bridge before ended.

        In a Cluster its cursor may know more than the rooms: a replica that took one over has not got the newest
        publications, and the cursor is on another server. So a little is done again there; rooms leave out what they
        have.
        """
        self._cursors, self._again = await self._read_cursors(), {}
        if not topology().spans_keys:
            self._again = {stream: entry_order(cursor) for stream, cursor in self._cursors.items()}
            self._cursors = {
                stream: _before(cursor, AGAIN_SECONDS) for stream, cursor in self._cursors.items()
            }

    async def _read_cursors(self) -> dict[bytes, bytes]:
        """Where to go on; at the beginning when no bridge ever read the stream."""
        saved: Sequence[Any] = await client().hmget(key("cursors"), list(self.sources))
        return {stream: cursor or b"0-0" for stream, cursor in zip(self.sources, saved, strict=True)}

    async def _deliver(
        self, pipes: Pipes, streams: Reading, found: Sequence[tuple[bytes, list[Any]]]
    ) -> Awaitable[Any]:
        """Deliver what was read; returns the next read, which is on its way meanwhile."""
        for stream, entries in found:
            self._cursors[stream] = entries[-1][0]
        is_busy = self._size.adapt(found)
        following = streams.read(self._cursors, self._size.count) if is_busy else None
        for stream, entries in found:
            await self._deliver_entries(pipes, stream, entries)
        if following is not None:
            self._say_lag()
            return following
        if self._lag_said_at is not None:
            self._lag_said_at = None
            logger.info("caught up")
        if not found:
            await self._settle()
            await self._subscribed.wait()
            self.ready.set()
        if asyncio.get_running_loop().time() >= self._trim_at:
            await self._trim()
        # In the same write as the batch: what comes alone costs one round trip. How the batch went is looked at
        # before the next one, or when nothing has come for a while.
        following = streams.read(self._cursors, self._size.count, wait=self.ready.is_set())
        pipes.flush()
        if not self._layer.appends_publish:
            await self._settle()  # which hands it on
        return following

    async def _deliver_entries(self, pipes: Pipes, stream: bytes, entries: Sequence[Any]) -> None:
        source, again = self.sources[stream], self._again.get(stream, "")
        incoming = [source.incoming(entry_id, fields, again) for entry_id, fields in entries]
        for part in in_batches(incoming, self._handlers):
            batch = Batch(part, self._layer, again=again)
            await self._settle()  # one batch in flight, the next only after the one before succeeded
            if batch.has_work(self._handlers):
                await self._handle(pipes, batch)
            self._in_flight = batch
            batch.send(pipes, cursor=(key("cursors"), stream, part[-1].id))

    async def _handle(self, pipes: Pipes, batch: Batch) -> None:
        """Renew the lease meanwhile: handlers may take longer than it lasts."""
        handling = asyncio.create_task(batch.handle(pipes, self._handlers), name="handle")
        try:
            while not handling.done():
                await self._lease.hold()
                await asyncio.wait([handling], timeout=LEASE_SECONDS / 4)
        finally:
            handling.cancel()
        handling.result()

    async def _settle(self) -> None:
        if self._in_flight is not None:
            batch, self._in_flight = self._in_flight, None
            await batch.settle()
            self._failures = 0
            if batch.lag is not None:
                self._lag = batch.lag
                metrics.BUS_LAG.observe(batch.lag)

    def _say_lag(self) -> None:
        """Tell every second how far behind what was just delivered is."""
        loop_time = asyncio.get_running_loop().time()
        if self._lag > LAG_SECONDS and loop_time >= (self._lag_said_at or 0.0) + LAG_SECONDS:
            self._lag_said_at = loop_time
            logger.warning("behind", extra={"seconds": round(self._lag, 1)})

    # --- Housekeeping --------------------------------------------------------------------------------

    async def _trim(self) -> None:
        """Forget what is behind the cursor and old enough."""
        self._trim_at = asyncio.get_running_loop().time() + TRIM_SECONDS
        await layout.claim()  # again, in case that Redis was wiped
        await self._forget_the_past(self._cursors)

    async def _make_room(self) -> None:
        """Redis is full, perhaps of what was delivered long ago: forgetting is what it still allows."""
        with contextlib.suppress(RedisError):
            await self._forget_the_past(await self._read_cursors())

    async def _forget_the_past(self, cursors: Mapping[bytes, bytes]) -> None:
        for stream, source in self.sources.items():
            oldest = min(milliseconds(cursors[stream]), int((await now() - source.keep) * 1000))
            # Without a limit of its own, Redis stops after 10,000 entries: less than a busy minute brings.
            await client().xtrim(stream, minid=oldest, limit=0)

    # --- Pub/Sub ---------------------------------------------------------------------------------

    async def _subscribe(self, subscriptions: Subscriptions) -> None:
        await subscriptions.subscribe([key(CHANNEL).encode()])
        self._subscribed.set()

    def _on_messages(self, messages: Sequence[Message]) -> None:
        """A message that arrives while no bridge leads is lost, as Pub/Sub goes."""
        if self._leading:
            self._inbox.put([raw for _, raw in messages])

    async def _deliver_published(self) -> None:
        """Deliver what was published, in order, as many together as wait."""
        pipes = Pipes()
        try:
            while not is_cancelled():
                incoming = [published(raw) for raw in await self._inbox.take(READ_MOST)]
                for part in in_batches(incoming, self._handlers):
                    for has_id, messages in groupby(part, _has_id):
                        # Without an id nothing but the lease keeps a message from coming twice.
                        await self._publish(pipes, list(messages), NO_LEASE if has_id else self._lease.fence)
        finally:
            pipes.close()

    async def _publish(self, pipes: Pipes, messages: Sequence[Incoming], lease: tuple[str, str]) -> None:
        """Deliver messages, or drop them: for the same reason nothing is tried twice."""
        try:
            if any(map(self._handlers.concern, messages)):
                messages = await self._with_time(messages)
            batch = Batch(messages, self._layer)
            await batch.handle(pipes, self._handlers)
            if batch.entries:
                batch.send(pipes, lease=lease)
                await batch.settle()
        except Exception as error:
            if not isinstance(error, RedisError | OSError):
                report("pubsub")
            drop(len(messages), spelled(error))

    async def _with_time(self, messages: Sequence[Incoming]) -> list[Incoming]:
        """Give each a time of its own, by Redis' clock."""
        first = max(int(await now() * 1e6), self._published_at + 1)
        self._published_at = first + len(messages) - 1
        return [message.added_at(at) for at, message in enumerate(messages, first)]


def _before(entry_id: bytes, seconds: float) -> bytes:
    """The id of whatever was added so long before an entry of a stream."""
    return b"%d-0" % max(milliseconds(entry_id) - int(seconds * 1000), 0)


def _has_id(message: Incoming) -> bool:
    """Whether its id keeps a message from being delivered twice."""
    return any(delivery.id for delivery in message.deliveries)


def _ignore(channels: Collection[bytes]) -> None:
    """What was published while the subscription was lost is lost, as Pub/Sub goes."""
