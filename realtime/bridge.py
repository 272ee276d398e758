"""From the bus to the rooms.

The streams are read in order, in batches: one batch in flight, the next only after the one before succeeded, and on
any error the same batch again. What makes a repetition harmless is not the reader but the script that appends
(`append.lua`): in every room it leaves out what is not above the room's last entry of that stream. So any number of
bridges may run, and any of them may die at any moment. A lease only spares Redis the work of all but one; who holds
it is of no matter to correctness, except for what comes over Pub/Sub without an id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from channels.layers import get_channel_layer
from redis.exceptions import OutOfMemoryError, RedisError

from realtime import bus, metrics, roomlog
from realtime.bus import Delivery, InvalidMessage
from realtime.catalogue import BusContext, catalogue
from realtime.envelope import frame_around_offset
from realtime.lease import Lease
from realtime.redis import client, dedicated, is_cancelled, key
from realtime.revocation import now
from realtime.roomlog import Entry
from realtime.rooms import group_name, room_of_group

logger = logging.getLogger(__name__)

LEASE_SECONDS = 1.0
READ_COUNT = 500
READ_BLOCK = 0.2
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


_DELIVERED = metrics.BUS_MESSAGES.labels("delivered")
_DUPLICATE = metrics.BUS_MESSAGES.labels("duplicate")

BUS = Source("stream", b"message", lambda raw: [bus.parse(raw)])


class Bridge:
    """Delivers what its sources and the Pub/Sub channel bring, until cancelled."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = {key(source.name).encode(): source for source in sources}
        self.ready = asyncio.Event()
        """Set once subscribed, and either caught up or standing by."""
        self._lease = Lease("bridge", LEASE_SECONDS)
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

    async def _forever(self, work: Callable[[], Awaitable[None]], what: str) -> None:
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
                if isinstance(error, OutOfMemoryError):
                    await self._make_room()
                await asyncio.sleep(random.uniform(0.05, min(1.0, 0.1 * 2 ** min(failures, 4))))  # noqa: S311

    # --- Streams ---------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Read and deliver the next batch, or stand by."""
        if not await self._lease.hold():
            self._stand_down()
            await self._subscribed.wait()
            self.ready.set()
            await asyncio.sleep(READ_BLOCK * random.uniform(0.5, 1.0))  # noqa: S311
            return
        if not self._leading:
            self._cursors = await self._read_cursors()
            self._leading = True
            logger.info(
                "delivering", extra={"cursors": {k.decode(): v.decode() for k, v in self._cursors.items()}}
            )
        block = int(READ_BLOCK * 1000) if self.ready.is_set() else None
        found: Any = await client().xread({**self._cursors}, count=READ_COUNT, block=block)
        for stream, entries in found:
            if is_cancelled():
                return
            await self._deliver_batch(stream, entries)
            self._cursors[stream] = entries[-1][0]
        if not found:
            await self._subscribed.wait()
            self.ready.set()
        await self._trim()

    def _stand_down(self) -> None:
        if self._leading:
            logger.info("standing by")
        self._leading = False

    async def _read_cursors(self) -> dict[Any, Any]:
        """Where to go on; at the beginning when no bridge ever read the stream."""
        saved = await client().hmget(key("cursors"), list(self.sources))
        return {stream: cursor or b"0-0" for stream, cursor in zip(self.sources, saved, strict=True)}

    async def _deliver_batch(
        self, stream: bytes, entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]
    ) -> None:
        """Deliver entries in order and move the cursor; what is not valid goes to the dead letters."""
        source = self.sources[stream]
        batch = Batch()
        for entry_id, fields in entries:
            raw = fields.get(source.field)
            try:
                if raw is None:
                    raise InvalidMessage(
                        "invalid_message", f"the entry has no field {source.field.decode()!r}"
                    )
                deliveries = source.decode(raw)
            except InvalidMessage as error:
                await self._bury(error, source.name, raw or repr(dict(fields)).encode())
                continue
            milliseconds, _, sequence = entry_id.decode().partition("-")
            entry = f"{int(milliseconds):020d}-{int(sequence):020d}"
            context = BusContext(at=(int(milliseconds) + 1) / 1000, order=entry)
            for delivery in deliveries:
                if await self._prepare(delivery, context, source.name, raw, batch):
                    batch.add(delivery, source=source.name, entry=entry)
        await batch.submit(cursor=(key("cursors"), stream, entries[-1][0]))

    async def _prepare(
        self, delivery: Delivery, context: BusContext, source: str, raw: bytes, batch: Batch
    ) -> bool:
        """Run the bus handlers of an event before it is delivered, and after all that came before it.

        False: an event with the same id was handled before, leave it out.
        """
        handlers = catalogue().bus_handlers.get(delivery.event)
        if not handlers:
            return True
        await batch.submit()
        if delivery.id and not await self._claim(delivery.id, context.order):
            _DUPLICATE.inc()
            return False
        for handler in handlers:
            try:
                await handler(delivery.payload, context)
            except RedisError:
                raise
            except Exception as error:
                logger.exception("bus handler failed", extra={"event": delivery.event})
                await self._bury(InvalidMessage("handler_failed", repr(error)), source, raw)
        return True

    async def _claim(self, id: str, order: str) -> bool:
        """Whether this message is the first of its id; the same message may claim it again."""
        marker = key("handled", id)
        if await client().set(marker, order, nx=True, ex=roomlog.MARKER_SECONDS):
            return True
        return bool(await client().get(marker) == order.encode())

    async def _trim(self) -> None:
        """Forget what is behind the cursor and old enough."""
        loop_time = asyncio.get_running_loop().time()
        if loop_time < self._trimmed_at + 60:
            return
        self._trimmed_at = loop_time
        await self._forget_the_past(self._cursors)

    async def _make_room(self) -> None:
        """Redis is full, perhaps of what was delivered long ago: forgetting is what it still allows."""
        with contextlib.suppress(RedisError):
            await self._forget_the_past(await self._read_cursors())

    async def _forget_the_past(self, cursors: Mapping[bytes, bytes]) -> None:
        for stream, source in self.sources.items():
            cursor = int(cursors[stream].partition(b"-")[0])
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
        at = await now()
        context = BusContext(at=at, order=f"{int(at * 1000):020d}-{int(at * 1e6) % 1000:020d}")
        batch = Batch(("", "") if delivery.id else self._lease.fence)
        if await self._prepare(delivery, context, CHANNEL, raw, batch):
            batch.add(delivery)
            await batch.submit()

    # --- Dead letters ------------------------------------------------------------------------------

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


class Batch:
    """Deliveries that go out together."""

    def __init__(self, fence: tuple[str, str] = ("", "")) -> None:
        self._fence = fence
        self._entries: list[Entry] = []

    def add(self, delivery: Delivery, *, source: str = "", entry: str = "") -> None:
        """Encode a delivery, once a room, for all the clients there are."""
        rooms = []
        for namespace, room in delivery.targets:
            head, tail = frame_around_offset(delivery.event, delivery.data, room)
            rooms.append((group_name(namespace, room), head, tail))
        if rooms:
            self._entries.append(
                Entry(
                    rooms=rooms,
                    source=source,
                    entry=entry,
                    id=delivery.id or "",
                    exclude=delivery.exclude or "",
                )
            )

    async def submit(self, *, cursor: tuple[str, bytes, bytes] = ("", b"", b"")) -> None:
        """Append and publish, and move the cursor. Raises `redis.RedisError`: then submit the same again."""
        if not self._entries and not cursor[0]:
            return
        layer: Any = get_channel_layer()
        knows_rooms = "rooms" in layer.extensions
        appended = await roomlog.append(self._entries, lease=self._fence, cursor=cursor, publish=knows_rooms)
        delivered = sum(1 for positions in appended if any(positions))
        _DELIVERED.inc(delivered)
        _DUPLICATE.inc(len(appended) - delivered)
        for entry, positions in zip(self._entries, appended, strict=False):
            if not knows_rooms:
                await _send_over(layer, entry, positions)
        self._entries = []


async def _send_over(layer: Any, entry: Entry, positions: Sequence[bytes]) -> None:
    """To a channel layer that does not know rooms: at most once, as a system check says."""
    for (group, head, tail), position in zip(entry.rooms, positions, strict=True):
        if position:
            await layer.group_send(
                group,
                {
                    "type": "room.frame",
                    "room": room_of_group(group),
                    "offset": position.decode(),
                    "text": (head + position + tail).decode(),
                    "except": entry.exclude,
                },
            )
