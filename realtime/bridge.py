"""From the bus to the rooms.

Bridges take turns by a lease: one delivers, the others stand by. The one that delivers reads the streams in
order, one entry at a time: position, rooms, then the cursor. When it dies half-way, the next one reads the same
entry again and gives it the same positions, so that who had it already drops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from channels.layers import get_channel_layer
from redis.exceptions import RedisError

from realtime import bus, metrics, positions
from realtime.bus import Delivery, InvalidMessage
from realtime.catalogue import BusContext, catalogue
from realtime.envelope import encode
from realtime.lease import Lease
from realtime.redis import client, dedicated, is_cancelled, key
from realtime.revocation import now
from realtime.rooms import group_name

logger = logging.getLogger(__name__)

LEASE_SECONDS = 2.0
READ_COUNT = 100
READ_BLOCK = 0.4
"""Seconds a read waits for news: under the lease, so that it is renewed in time."""
KEEP_SECONDS = 600.0
"""Entries behind the cursor are kept for at least so long."""
DEAD_LETTERS = 1000
DEAD_LETTER_BYTES = 4096
CHANNEL = "events"


@dataclass(frozen=True, slots=True)
class Source:
    """A stream that the bridge reads: its name below the prefix, the field that matters, and what it means."""

    name: str
    field: bytes
    decode: Callable[[bytes], Sequence[Delivery]]
    keep: float = KEEP_SECONDS


BUS = Source("stream", b"message", lambda raw: [bus.parse(raw)])


class Bridge:
    """Delivers what its sources and the Pub/Sub channel bring, until cancelled."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = {key(source.name).encode(): source for source in sources}
        self.ready = asyncio.Event()
        """Set once subscribed, and either caught up or standing by."""
        self._lease = Lease("bridge", LEASE_SECONDS)
        self._turn = asyncio.Lock()
        self._subscribed = asyncio.Event()
        self._cursors: dict[Any, Any] = {}
        self._trimmed_at = 0.0
        self._leading = False

    async def run(self) -> None:
        """Never returns; raises nothing but `asyncio.CancelledError`."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._forever(self._listen, "pub/sub"), name="pubsub")
                tasks.create_task(self._forever(self._follow, "streams"), name="streams")
        finally:
            with contextlib.suppress(RedisError):
                await self._lease.release()

    async def _forever(self, work: Callable[[], Any], what: str) -> None:
        """Start again after a lost Redis: soon, then later and later up to a second, never all at once."""
        failures = 0
        while not is_cancelled():
            try:
                await work()
                failures = 0
            except (RedisError, OSError) as error:
                failures += 1
                self._stand_down()
                logger.warning(
                    "redis lost, trying again",
                    extra={"while": what, "failures": failures, "error": repr(error)},
                )
                await asyncio.sleep(random.uniform(0.05, min(1.0, 0.1 * 2 ** min(failures, 4))))  # noqa: S311

    # --- Streams ---------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Read and deliver the next entries, or stand by."""
        if not await self._lease.hold():
            self._stand_down()
            await self._subscribed.wait()
            self.ready.set()
            await asyncio.sleep(READ_BLOCK * random.uniform(0.5, 1.0))  # noqa: S311
            return
        if not self._leading:
            self._cursors = await self._read_cursors()
            self._leading = True
            logger.info("delivering", extra={"cursors": {k.decode(): v for k, v in self._cursors.items()}})
        block = int(READ_BLOCK * 1000) if self.ready.is_set() else None
        entries: Any = await client().xread({**self._cursors}, count=READ_COUNT, block=block)
        for stream, batch in entries:
            for entry_id, fields in batch:
                if not await self._lease.hold() or is_cancelled():
                    return
                async with self._turn:
                    await self._take(self.sources[stream], entry_id.decode(), fields)
                    await client().hset(key("cursors"), stream, entry_id)
                self._cursors[stream] = entry_id.decode()
        if not entries:
            await self._subscribed.wait()
            self.ready.set()
        await self._trim()

    def _stand_down(self) -> None:
        if self._leading:
            logger.info("standing by")
        self._leading = False

    async def _read_cursors(self) -> dict[bytes, str]:
        """Where to go on; at the beginning when no bridge ever read the stream."""
        cursors = {}
        for stream in self.sources:
            saved: Any = await client().hget(key("cursors"), stream)
            cursors[stream] = saved.decode() if saved else "0-0"
        return cursors

    async def _take(self, source: Source, entry_id: str, fields: Mapping[bytes, bytes]) -> None:
        """Deliver one entry, or put it with the dead letters."""
        raw = fields.get(source.field)
        milliseconds, _, sequence = entry_id.partition("-")
        context = BusContext(at=(int(milliseconds) + 1) / 1000)
        try:
            if raw is None:
                raise InvalidMessage("invalid_message", f"the entry has no field {source.field.decode()!r}")
            deliveries = source.decode(raw)
        except InvalidMessage as error:
            await self._bury(error, source.name, raw or repr(dict(fields)).encode())
            return
        for delivery in deliveries:
            await self._deliver(
                delivery,
                context,
                source=source.name,
                entry=f"{int(milliseconds):020d}-{int(sequence):020d}",
                raw=raw,
            )

    async def _trim(self) -> None:
        """Forget what is behind the cursor and old enough."""
        loop_time = asyncio.get_running_loop().time()
        if loop_time < self._trimmed_at + 60:
            return
        self._trimmed_at = loop_time
        for stream, source in self.sources.items():
            cursor = int(self._cursors[stream].partition("-")[0])
            oldest = min(cursor, int((await now() - source.keep) * 1000))
            # Without a limit of its own, Redis stops after 10,000 entries: less than a busy minute brings.
            await client().xtrim(stream, minid=oldest, limit=0)

    # --- Pub/Sub ---------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Deliver what is published, while leading. What comes while nobody leads is lost, as Pub/Sub goes."""
        async with dedicated() as redis, redis.pubsub(ignore_subscribe_messages=False) as subscription:
            await subscription.subscribe(key(CHANNEL))
            async for message in subscription.listen():
                if message["type"] == "subscribe":
                    self._subscribed.set()
                elif message["type"] == "message" and self._leading:
                    await self._publish(message["data"])
                if is_cancelled():
                    return

    async def _publish(self, raw: bytes) -> None:
        try:
            delivery = bus.parse(raw)
        except InvalidMessage as error:
            await self._bury(error, CHANNEL, raw)
            return
        async with self._turn:
            at = await now()
            await self._deliver(
                delivery, BusContext(at=at), source=CHANNEL, entry=f"{int(at * 1e6):020d}", raw=raw
            )

    # --- Delivery --------------------------------------------------------------------------------

    async def _deliver(
        self, delivery: Delivery, context: BusContext, *, source: str, entry: str, raw: bytes
    ) -> None:
        """Position, bus handlers, rooms. Raises `redis.RedisError`: then the entry is read again."""
        found = await positions.assign(delivery.targets, source=source, entry=entry, id=delivery.id)
        if found is None:
            metrics.BUS_MESSAGES.labels("duplicate").inc()
            return
        for handler in catalogue().bus_handlers.get(delivery.event, ()):
            try:
                await handler(delivery.payload, context)
            except RedisError:
                raise
            except Exception as error:
                logger.exception("bus handler failed", extra={"event": delivery.event})
                await self._bury(InvalidMessage("handler_failed", repr(error)), source, raw)
        layer: Any = get_channel_layer()
        for (namespace, room), offset in found.items():
            message = {
                "type": "room.frame",
                "room": room,
                "offset": offset,
                "text": encode(delivery.event, delivery.data, room=room, offset=offset),
            }
            if delivery.exclude is not None:
                message["except"] = delivery.exclude
            await layer.group_send(group_name(namespace, room), message)
        metrics.BUS_MESSAGES.labels("delivered").inc()

    async def _bury(self, error: InvalidMessage, source: str, raw: bytes) -> None:
        """Keep what could not be delivered, with the reason."""
        metrics.BUS_MESSAGES.labels("dead").inc()
        metrics.DEAD_LETTERS.labels(error.code).inc()
        logger.warning("dead letter", extra={"source": source, "reason": str(error)[:500]})
        await client().xadd(
            key("dead"),
            {"reason": str(error)[:500], "source": source, "message": raw[:DEAD_LETTER_BYTES]},
            maxlen=DEAD_LETTERS,
        )
