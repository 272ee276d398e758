"""Batches: bus messages that go to Redis together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
from redis.exceptions import ResponseError

from realtime.bridge.bus_handlers import Handlers, concerns, is_refusal
from realtime.bridge.dead_letters import dead_letter
from realtime.bridge.incoming import Incoming
from realtime.layers import history as roomlog
from realtime.layers.history import NO_CURSOR, NO_LEASE
from realtime.layers.interface import RoomLayer
from realtime.protocol.bus_message import Delivery, InvalidMessage
from realtime.protocol.envelope import frame_head, frame_tail
from realtime.protocol.publication import Entry, Target
from realtime.protocol.rooms import group_name
from realtime.redis.pipelining import Pipes, begin
from realtime.tasks.supervision import report
from realtime.telemetry import metrics, tracing
from realtime.telemetry.logs import spelled

if TYPE_CHECKING:
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20
"""About so many bytes at most go to Redis at once, unless a single message has more."""
BATCH_ROOMS = 1000
"""The same for rooms, in each of which Redis has something to do."""

_DELIVERED = metrics.BUS_MESSAGES.labels("delivered")
_DUPLICATE = metrics.BUS_MESSAGES.labels("duplicate")
_DROPPED = metrics.BUS_MESSAGES.labels("dropped")


def drop(count: int, reason: str) -> None:
    """Tell that messages are lost which Pub/Sub brought, and which nothing keeps."""
    _DROPPED.inc(count)
    logger.warning("dropped", extra={"messages": count, "reason": reason})


def in_batches(messages: Sequence[Incoming], handlers: Handlers) -> Iterator[list[Incoming]]:
    """Messages in order, in parts of bounded size.

    The handlers of a part run before it is published. So a message whose handlers concern what an earlier one concerns,
    or a room that it goes to, begins a new part: it must not overtake it.
    """
    has_order = any(map(handlers.concern, messages))
    part: list[Incoming] = []
    size = rooms = 0
    touched: set[str] = set()
    for message in messages:
        targets = sum([len(delivery.targets) for delivery in message.deliveries])
        weight = len(message.raw) + targets * roomlog.ROOM_BYTES
        if part and (
            size + weight > BATCH_BYTES
            or rooms + targets > BATCH_ROOMS
            or (touched and handlers.concern(message) and _would_overtake(message, touched))
        ):
            yield part
            part, size, rooms, touched = [], 0, 0, set()
        part.append(message)
        size += weight
        rooms += targets
        if has_order:
            touched |= _touched(message)
    if part:
        yield part


def _would_overtake(message: Incoming, touched: set[str]) -> bool:
    names = set[str]().union(*[concerns(delivery.payload) for delivery in message.deliveries])
    return not names or not names.isdisjoint(touched)


def _touched(message: Incoming) -> set[str]:
    """What is published concerns, and where it goes."""
    published = [delivery for delivery in message.deliveries if delivery.targets]
    rooms = {room for delivery in published for _, room in delivery.targets}
    return rooms.union(*[concerns(delivery.payload) for delivery in published])


@lru_cache(maxsize=4096)
def _place(event: str, target: Target) -> tuple[str, bytes]:
    """The group of a target, and the frame before its offset."""
    namespace, room = target
    return group_name(namespace, room), frame_head(event, room)


class Batch:
    """Publishes messages, and moves the cursor."""

    def __init__(self, messages: Sequence[Incoming], layer: RoomLayer, *, again: str = "") -> None:
        self.messages = messages
        self._layer = layer
        self._again = again
        self._spans: list[Span] = []
        self.entries: list[Entry] = []
        """What there is to publish."""
        self._rejected: list[tuple[Incoming, Delivery, InvalidMessage]] = []
        """What can't be published, and why."""
        for message in messages:
            for delivery in message.deliveries:
                if delivery.targets:
                    self._add(message, delivery)

    def _add(self, message: Incoming, delivery: Delivery) -> None:
        try:
            self.entries.append(self._entry(message, delivery))
        except Exception as error:
            report("batch")
            self._rejected.append((message, delivery, InvalidMessage("event_failed", spelled(error))))

    def _entry(self, message: Incoming, delivery: Delivery) -> Entry:
        """Encode a delivery for all the clients there are."""
        span = None if message.is_repeated else tracing.deliver(delivery.event, delivery.traceparent)
        if span is not None:
            self._spans.append(span)
        return Entry(
            rooms=[_place(delivery.event, target) for target in delivery.targets],
            tail=frame_tail(delivery.data),
            source=message.source if message.id else "",
            entry=message.order if message.id else "",
            id=delivery.id or "",
            exclude=delivery.exclude or "",
            traceparent=(span and tracing.traceparent(span)) or "",
        )

    def send(
        self, pipes: Pipes, *, cursor: roomlog.Cursor = NO_CURSOR, lease: roomlog.Lease = NO_LEASE
    ) -> asyncio.Task[float | None]:
        """Begin to publish, and to move the cursor. It is on its way when this returns.

        The task has the seconds from the oldest message until it was published, if that is known. Or it raises
        `redis.RedisError`: then all of it again does what is left.
        """
        letters = [
            dead_letter(pipes, message, error)
            for message, _, error in self._rejected
            if not message.is_repeated
        ]
        sent = self._layer.publish(pipes, self.entries, lease=lease, cursor=cursor, again=self._again)
        return begin(self._finish(sent, letters, pipes, cursor))

    async def _finish(
        self,
        sent: asyncio.Future[list[list[bytes]]],
        letters: Sequence[Awaitable[object]],
        pipes: Pipes,
        cursor: roomlog.Cursor,
    ) -> float | None:
        lag = await self._settle(sent, pipes, cursor)
        for letter in letters:
            await letter
        return lag

    async def _settle(
        self, sent: asyncio.Future[list[list[bytes]]], pipes: Pipes, cursor: roomlog.Cursor
    ) -> float | None:
        try:
            appended = await sent
        except ResponseError as error:
            # Of what was refused Redis may have done a part: only what a stream brought can be repeated.
            if not (is_refusal(error) and self.messages[0].id):
                raise
            await self._send_singly(pipes, cursor, error)
            return None
        finally:
            for span in self._spans:
                span.end()
        self._count(appended)
        return self._lag(appended)

    async def _send_singly(self, pipes: Pipes, cursor: roomlog.Cursor, error: ResponseError) -> None:
        """One of them is what Redis refuses: it must not hold up the others."""
        if cursor is NO_CURSOR:  # there is but one
            await dead_letter(pipes, self.messages[0], InvalidMessage("refused", spelled(error)))
            return
        rejected = {id(delivery) for _, delivery, _ in self._rejected}
        for message in self.messages:
            for delivery in message.deliveries:
                if id(delivery) in rejected:
                    continue
                single = msgspec.structs.replace(message, deliveries=[delivery])
                await Batch([single], self._layer, again=self._again).send(pipes)
        await roomlog.send_append(pipes, [], cursor=cursor)

    def _count(self, appended: Sequence[Sequence[bytes]]) -> None:
        delivered = sum(map(any, appended))  # in some room; nowhere when it was left out
        _DELIVERED.inc(delivered)
        _DUPLICATE.inc(len(appended) - delivered)
        if dropped := len(self.entries) - len(appended):
            drop(dropped, "the lease is another bridge's")

    def _lag(self, appended: Sequence[Sequence[bytes]]) -> float | None:
        """Positions are times: Redis published at that of the first one."""
        oldest = self.messages[0]
        known = (int(position) for positions in appended for position in positions if position > b"0")
        if not oldest.id or oldest.is_repeated or (position := next(known, None)) is None:
            return None
        lag = max(position / 1e6 - oldest.at, 0.0)
        metrics.BUS_LAG.observe(lag)
        return lag
