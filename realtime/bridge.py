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
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from channels.layers import get_channel_layer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError

from realtime import bus, layout, metrics, roomlog, tracing
from realtime.bus import Delivery, InvalidMessage
from realtime.catalogue import BusContext, catalogue
from realtime.cluster import shards
from realtime.envelope import frame_head, frame_tail
from realtime.lease import Lease
from realtime.location import Address
from realtime.logs import spelled
from realtime.pipe import Pipes
from realtime.reading import READ_BLOCK, Reading, as_list, reading
from realtime.redis import client, dedicated, is_cancelled, key
from realtime.revocation import now
from realtime.roomlog import Entry
from realtime.rooms import group_name, room_of_group

logger = logging.getLogger(__name__)

LEASE_SECONDS = 1.0
BUSY = 50
"""A batch so large is not the last one: the next is fetched while this one is prepared."""
AGAIN_SECONDS = 30.0
"""Longer than a Cluster takes to replace a server: cluster-node-timeout (15 s by default), and an election."""
KEEP_SECONDS = 600.0
"""Entries behind the cursor are kept for at least so long."""
LISTEN_SECONDS = 1.0
"""Without a message on the Pub/Sub channel; then a sign of life is asked for."""
LISTEN_PATIENCE = 5
"""So often, before the connection is given up."""
LAG_SECONDS = 1.0
"""A bridge so far behind says so, as often as that."""
TRIM_SECONDS = 60.0
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
        self._layer: Any = get_channel_layer()
        self._subscribed = asyncio.Event()
        self._cursors: dict[bytes, bytes] = {}
        self._again: dict[bytes, str] = {}
        """Up to where a stream was delivered before and is delivered again."""
        self._in_flight: Batch | None = None
        self._may_be_silent = self._is_trusted = False
        """Redis lets us do without an answer; and the batch before was delivered."""
        self._handled = catalogue().bus_handlers
        self._trim_at = 0.0
        self._is_behind = False
        self._lag_said_at = float("-inf")
        self._leading = False
        metrics.LEADING.set(0)
        self._clock: float | None = None
        """What Redis' clock is ahead of `time.monotonic`, in seconds, looked at every second."""
        self._clock_at = float("-inf")

    async def run(self) -> None:
        """Never returns; raises nothing but `asyncio.CancelledError`."""
        tracing.start()
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
                logger.warning(
                    "redis lost, trying again",
                    extra={"while": what, "failures": failures, "error": spelled(error)},
                )
                if isinstance(error, OutOfMemoryError):
                    await self._make_room()
                await asyncio.sleep(random.uniform(0.05, min(1.0, 0.1 * 2 ** min(failures, 4))))  # noqa: S311

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
        self._is_trusted = False
        cluster = shards()
        try:
            if cluster is not None:
                await cluster.known()
                cluster.on_arrival.add(pipes.close)  # then begin again
            self._may_be_silent = await roomlog.prepare(pipes)
            await self._begin()
            self._leading = True
            metrics.LEADING.set(1)
            logger.info(
                "delivering", extra={"cursors": {k.decode(): v.decode() for k, v in self._cursors.items()}}
            )
            self._read_clock(pipes)
            found = streams.read(self._cursors)
            while (self._lease.is_fresh or await self._lease.hold()) and not (
                is_cancelled() or pipes.is_closed
            ):
                found = await self._deliver(pipes, streams, await found)
        finally:
            self._stand_down()
            streams.close()
            pipes.close()
            if cluster is not None:
                cluster.on_arrival.discard(pipes.close)

    def _stand_down(self) -> None:
        if self._leading:
            logger.info("standing by")
        self._leading = False
        metrics.LEADING.set(0)

    async def _begin(self) -> None:
        """Go on where the bridge before ended.

        In a Cluster its cursor may know more than the rooms: a replica that took one over has not got the newest
        publications, and the cursor is on another server. So a little is done again there; rooms leave out what they
        have.
        """
        self._cursors, self._again = await self._read_cursors(), {}
        if shards() is not None:
            self._again = {stream: entry_order(cursor) for stream, cursor in self._cursors.items()}
            self._cursors = {
                stream: _before(cursor, AGAIN_SECONDS) for stream, cursor in self._cursors.items()
            }

    async def _read_cursors(self) -> dict[bytes, bytes]:
        """Where to go on; at the beginning when no bridge ever read the stream."""
        saved: Sequence[Any] = await client().hmget(key("cursors"), list(self.sources))
        return {stream: cursor or b"0-0" for stream, cursor in zip(self.sources, saved, strict=True)}

    def _read_clock(self, pipes: Pipes) -> None:
        """In front of a read, so that it costs no round trip."""
        # Not the loop's own clock, which stands still within a turn.
        if time.monotonic() < self._clock_at + LAG_SECONDS:
            return
        self._clock_at = time.monotonic()

        def told(answer: asyncio.Future[Any]) -> None:
            if not answer.cancelled() and answer.exception() is None:
                seconds, microseconds = answer.result()
                self._clock = int(seconds) + int(microseconds) / 1e6 - time.monotonic()

        pipes.to(key("cursors")).send("TIME").add_done_callback(told)

    def _age(self, entry_id: bytes) -> float:
        """How long ago it was added, in seconds; 0 before Redis' clock is known."""
        if self._clock is None:
            return 0.0
        return max(self._clock + time.monotonic() - int(entry_id.partition(b"-")[0]) / 1000, 0.0)

    def _measure_lag(self, batch: Batch, oldest: bytes) -> None:
        """How old its oldest entry is once the batch is out."""

        def out(answer: asyncio.Future[Any]) -> None:
            if not answer.cancelled() and answer.exception() is None and self._clock is not None:
                metrics.BUS_LAG.observe(self._age(oldest))

        batch.when_out(out)

    async def _deliver(self, pipes: Pipes, streams: Reading, found: Any) -> Awaitable[Any]:
        """Deliver what was read; returns the next read, which is on its way meanwhile."""
        batches = as_list(found)
        for stream, entries in batches:
            self._cursors[stream] = entries[-1][0]
        busy = any(len(entries) >= BUSY for _, entries in batches)
        self._read_clock(pipes)
        following = streams.read(self._cursors) if busy else None
        is_alone = len(batches) == 1 and not busy and self.ready.is_set()
        for stream, entries in batches:
            batch = await self._decode(pipes, stream, entries)
            # One batch in flight, the next only after the one before succeeded.
            await self._settle()
            is_new = entry_order(entries[-1][0]) > batch.again
            cursor = (key("cursors"), stream, entries[-1][0]) if is_new else roomlog.NO_CURSOR
            self._in_flight = batch
            if is_alone and self._is_trusted and batch.can_be_silent:
                batch.send_silently(pipes, cursor=cursor)
                continue
            batch.send(pipes, cursor=cursor)
            if is_new:
                self._measure_lag(batch, entries[0][0])
        if following is not None:
            self._say_lag(batches[0][1][-1][0])
            return following
        if self._is_behind:
            self._is_behind = False
            logger.info("caught up")
        if not batches:
            await self._settle()
            await self._subscribed.wait()
            self.ready.set()
        if asyncio.get_running_loop().time() >= self._trim_at:
            await self._trim()
        # In the same write as the batch: what comes alone costs one round trip. How the batch went is looked at
        # before the next one, or when nothing has come for a while. To be woken for an answer costs as much as all the
        # rest, so there is none where nobody waits for it: Redis is asked behind the read how it went.
        following = streams.read(self._cursors, wait=self.ready.is_set())
        if self._in_flight is not None and self._in_flight.is_silent:
            self._in_flight.look(pipes)
        pipes.flush()
        if self._in_flight is not None and self._in_flight.is_half_way:
            await self._settle()
        return following

    def _say_lag(self, entry_id: bytes) -> None:
        """Tell how far behind what was just delivered is, every second."""
        loop_time = asyncio.get_running_loop().time()
        if loop_time < self._lag_said_at + LAG_SECONDS:
            return
        self._lag_said_at = loop_time
        lag = self._age(entry_id)
        if lag > LAG_SECONDS:
            self._is_behind = True
            logger.warning("behind", extra={"seconds": round(lag, 1)})

    async def _settle(self) -> None:
        if self._in_flight is not None:
            batch, self._in_flight = self._in_flight, None
            await batch.settle()
            self._is_trusted = self._may_be_silent

    async def _decode(
        self, pipes: Pipes, stream: bytes, entries: Sequence[tuple[bytes, list[bytes]]]
    ) -> Batch:
        """Entries as deliveries, in order; what is not valid goes to the dead letters."""
        source = self.sources[stream]
        batch = Batch(self._layer, self._again.get(stream, ""), entries[0][0])
        buried: list[Awaitable[Any]] = []
        for entry_id, fields in entries:
            raw = _field(fields, source.field)
            order = entry_order(entry_id)
            try:
                if raw is None:
                    raise InvalidMessage(
                        "invalid_message", f"the entry has no field {source.field.decode()!r}"
                    )
                deliveries = source.decode(raw)
            except InvalidMessage as error:
                if order > batch.again:
                    buried.append(self._bury(pipes, error, source.name, raw or repr(fields).encode()))
                continue
            for delivery in deliveries:
                if delivery.event in self._handled and order > batch.again:
                    # After all that came before it.
                    await self._settle()
                    await batch.submit(pipes)
                    await self._lease.hold()  # many of these take longer than the lease lasts
                    context = BusContext(at=(int(entry_id.partition(b"-")[0]) + 1) / 1000, order=order)
                    if not await self._handle(pipes, delivery, context, source.name, raw):
                        continue
                batch.add(delivery, source=source.name, entry=order)
        for letter in buried:
            await letter  # before the cursor moves on
        return batch

    async def _handle(
        self, pipes: Pipes, delivery: Delivery, context: BusContext, source: str, raw: bytes
    ) -> bool:
        """Run the bus handlers of an event before it is delivered.

        False: an event with the same id was handled before, leave it out.
        """
        if delivery.id and not await self._claim(delivery.id, context.order):
            _DUPLICATE.inc()
            return False
        for handler in self._handled[delivery.event]:
            try:
                await handler(delivery.payload, context)
            except RedisError:
                raise
            except Exception as error:
                logger.exception("bus handler failed", extra={"event": delivery.event})
                await self._bury(pipes, InvalidMessage("handler_failed", spelled(error)), source, raw)
        return True

    async def _claim(self, id: str, order: str) -> bool:
        """Whether this message is the first of its id; the same message may claim it again."""
        marker = key("handled", id)
        if await client().set(marker, order, nx=True, ex=roomlog.MARKER_SECONDS):
            return True
        return bool(await client().get(marker) == order.encode())

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
            cursor = int(cursors[stream].partition(b"-")[0])
            oldest = min(cursor, int((await now() - source.keep) * 1000))
            # Without a limit of its own, Redis stops after 10,000 entries: less than a busy minute brings.
            await client().xtrim(stream, minid=oldest, limit=0)

    # --- Pub/Sub ---------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Deliver what is published, while leading. What comes while nobody leads is lost, as Pub/Sub goes."""
        pipes = Pipes()  # tries nothing twice: without an id nothing else keeps a message from coming twice
        try:
            server = await self._any_server()
            async with (
                dedicated(server) as redis,
                redis.pubsub(ignore_subscribe_messages=False) as subscription,
            ):
                await subscription.subscribe(key(CHANNEL))
                quiet = 0
                while not is_cancelled():
                    message = await subscription.get_message(timeout=LISTEN_SECONDS)
                    quiet = quiet + 1 if message is None else 0
                    if message is None:
                        await self._prove(subscription, server, quiet)
                    elif message["type"] == "subscribe":
                        self._subscribed.set()
                    elif message["type"] == "message" and self._leading:
                        await self._publish(pipes, message["data"])
        finally:
            pipes.close()

    @staticmethod
    async def _prove(subscription: Any, server: Address | None, quiet: int) -> None:
        """Nothing has come for a while: a server that is gone, or that has left the Cluster, does not say so."""
        if quiet > LISTEN_PATIENCE:
            raise RedisConnectionError("the Pub/Sub subscription does not answer")
        if (cluster := shards()) is not None:
            cluster.refresh()
            if server not in cluster.servers():
                raise RedisConnectionError(
                    "the server of the Pub/Sub subscription is not in the Cluster any more"
                )
        await subscription.ping()

    @staticmethod
    async def _any_server() -> Address | None:
        """In a Cluster everybody hears what is published, wherever that was."""
        if (cluster := shards()) is None:
            return None
        cluster.refresh()  # perhaps the one before has died
        await cluster.known()
        return random.choice(list(cluster.servers()))  # noqa: S311

    async def _publish(self, pipes: Pipes, raw: bytes) -> None:
        try:
            delivery = bus.parse(raw)
        except InvalidMessage as error:
            await self._bury(pipes, error, CHANNEL, raw)
            return
        if delivery.event in self._handled:
            at = await now()
            context = BusContext(at=at, order=f"{int(at * 1000):020d}-{int(at * 1e6) % 1000:020d}")
            if not await self._handle(pipes, delivery, context, CHANNEL, raw):
                return
        batch = Batch(self._layer)
        batch.add(delivery)
        await batch.submit(pipes, lease=("", "") if delivery.id else self._lease.fence)

    # --- Dead letters ------------------------------------------------------------------------------

    def _bury(self, pipes: Pipes, error: InvalidMessage, source: str, raw: bytes) -> Awaitable[Any]:
        """Keep what could not be delivered, with the reason. On its way when this returns; await it to be sure."""
        metrics.BUS_MESSAGES.labels("dead").inc()
        metrics.DEAD_LETTERS.labels(error.code).inc()
        logger.warning("dead letter", extra={"source": source, "reason": str(error)[:500]})
        return pipes.to(key("dead")).send(
            *("XADD", key("dead"), "MAXLEN", "~", DEAD_LETTERS, "*"),
            *("reason", str(error)[:500].encode(errors="backslashreplace"), "source", source),
            *("message", raw[:DEAD_LETTER_BYTES]),
        )


class Batch:
    """Deliveries that go out together."""

    def __init__(self, layer: Any, again: str = "", oldest: bytes = b"0-0") -> None:
        self.again = again
        """Entries up to this one were delivered before: what a room has not got of them is for who was in it then."""
        self._oldest = oldest
        """The id of its oldest entry."""
        self._layer = layer
        self._knows_rooms = "rooms" in layer.extensions
        self._entries: list[Entry] = []
        self._answer: asyncio.Future[Any] | None = None
        self._silent: roomlog.Cursor | None = None
        """Where the cursor must be once it is done, when it was sent without an answer."""
        self._spans: list[Any] = []

    @property
    def is_half_way(self) -> bool:
        """Whether `settle` does the publishing, since the channel layer does not know rooms."""
        return not self._knows_rooms

    def add(self, delivery: Delivery, *, source: str = "", entry: str = "") -> None:
        """Encode a delivery, once a room, for all the clients there are."""
        if not delivery.targets:
            return
        rooms = []
        tail = frame_tail(delivery.data)
        for namespace, room in delivery.targets:
            rooms.append((group_name(namespace, room), frame_head(delivery.event, room), tail))
        span = (
            tracing.deliver(delivery.event, delivery.traceparent) if entry > self.again or not entry else None
        )
        if span is not None:
            self._spans.append(span)
        self._entries.append(
            Entry(
                rooms=rooms,
                source=source,
                entry=entry,
                id=delivery.id or "",
                exclude=delivery.exclude or "",
                traceparent=(span and tracing.traceparent(span)) or "",
            )
        )

    async def submit(self, pipes: Pipes, *, lease: roomlog.Lease = ("", "")) -> None:
        """Append and publish what is there so far. Raises `redis.RedisError`: then submit the same again."""
        if self._entries:
            entries, publish = self._entries, self._knows_rooms
            try:
                appended = await roomlog.append(
                    entries, pipes=pipes, lease=lease, again=self.again, publish=publish
                )
            finally:
                self._end_spans()
            await self._take(appended)

    def send(self, pipes: Pipes, *, cursor: roomlog.Cursor) -> None:
        """Begin to append and publish, and to move the cursor; `settle` tells how that went."""
        self._answer = roomlog.send_append(
            pipes, self._entries, cursor=cursor, again=self.again, publish=self._knows_rooms
        )
        if self._spans:
            self.when_out(self._end_spans)

    @property
    def can_be_silent(self) -> bool:
        """Whether nobody needs to know when it was done."""
        return self._knows_rooms and not self._spans

    @property
    def is_silent(self) -> bool:
        """Whether it was sent without an answer."""
        return self._silent is not None

    def send_silently(self, pipes: Pipes, *, cursor: roomlog.Cursor) -> None:
        """`send` without an answer; `look` before `settle`."""
        self._silent = cursor
        roomlog.send_append_silently(pipes, self._entries, cursor=cursor)

    def look(self, pipes: Pipes) -> None:
        """Ask how it went: the answer comes with that to what was sent before."""
        assert self._silent is not None  # noqa: S101  (sent)
        self._answer = roomlog.send_look(pipes, self._silent)

    async def settle(self) -> None:
        """Return once it is done. Raises `redis.RedisError`: then submit the same again."""
        assert self._answer is not None  # noqa: S101  (sent)
        answer = await self._answer
        if self._silent is None:
            await self._take(answer)
        else:
            self._take_look(answer, self._silent[2])

    def _take_look(self, answer: Sequence[bytes | None], expected: bytes) -> None:
        cursor, last = answer
        if cursor != expected or last is None:
            # Why, it will say when the same is sent again, with an answer.
            raise RedisError("redis did not do what was sent last")
        at, left_out = last.split()
        metrics.BUS_LAG.observe(max(int(at) / 1e6 - int(self._oldest.partition(b"-")[0]) / 1e3, 0.0))
        _DELIVERED.inc(len(self._entries) - int(left_out))
        _DUPLICATE.inc(int(left_out))

    def when_out(self, told: Callable[[asyncio.Future[Any]], None]) -> None:
        """Call `told` once Redis has answered what was sent."""
        assert self._answer is not None  # noqa: S101  (sent)
        self._answer.add_done_callback(told)

    async def _take(self, appended: Sequence[Sequence[bytes]]) -> None:
        entries, self._entries = self._entries, []
        duplicates = sum([not any(positions) for positions in appended])
        _DELIVERED.inc(len(appended) - duplicates)
        if duplicates and not (self.again and entries[0].entry <= self.again):
            _DUPLICATE.inc(duplicates)
        if not self._knows_rooms:
            for entry, positions in zip(entries, appended, strict=False):
                await _send_over(self._layer, entry, positions)

    def _end_spans(self, *_: Any) -> None:
        spans, self._spans = self._spans, []
        for span in spans:
            span.end()


def _field(fields: Sequence[bytes], name: bytes) -> bytes | None:
    """A field of a stream's entry, which is a list of names and values."""
    return fields[1] if fields[0] == name else dict(zip(fields[::2], fields[1::2], strict=True)).get(name)


def _before(entry_id: bytes, seconds: float) -> bytes:
    """The id of whatever was added so long before an entry of a stream."""
    return b"%d-0" % max(int(entry_id.partition(b"-")[0]) - int(seconds * 1000), 0)


def entry_order(entry_id: bytes) -> str:
    """The id of a stream's entry as text that sorts like it."""
    milliseconds, _, sequence = entry_id.decode().partition("-")
    return f"{milliseconds:0>20}-{sequence:0>20}"


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
