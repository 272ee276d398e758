"""Batches: bus messages that go to Redis together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from realtime import metrics, roomlog, tracing
from realtime.bus import Delivery, InvalidMessage
from realtime.dead_letters import dead_letter
from realtime.envelope import frame_head, frame_tail
from realtime.handling import Handlers, concerns, is_refusal
from realtime.incoming import Incoming
from realtime.logs import spelled
from realtime.membership import RoomLayer
from realtime.pipe import Pipes
from realtime.roomlog import NO_CURSOR, NO_LEASE, Entry, Target
from realtime.rooms import group_name
from realtime.supervision import report

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
        targets = 0
        for delivery in message.deliveries:
            targets += len(delivery.targets)
        weight = len(message.raw) + targets * roomlog.ROOM_BYTES
        if part and (
            size + weight > BATCH_BYTES
            or rooms + targets > BATCH_ROOMS
            or (has_order and handlers.concern(message) and _would_overtake(message, touched))
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
    names = set[str]().union(*(concerns(delivery.payload) for delivery in message.deliveries))
    return not names.isdisjoint(touched) if names else bool(touched)


def _touched(message: Incoming) -> set[str]:
    """What is published concerns, and where it goes."""
    names: set[str] = set()
    for delivery in message.deliveries:
        if delivery.targets:
            names |= concerns(delivery.payload)
            names.update([room for _, room in delivery.targets])
    return names


@lru_cache(maxsize=4096)
def _place(event: str, target: Target) -> tuple[str, bytes]:
    """The group of a target, and the frame before its offset."""
    namespace, room = target
    return group_name(namespace, room), frame_head(event, room)


class Batch:
    """Handles its messages, publishes them, and moves the cursor, in this order."""

    def __init__(self, messages: Sequence[Incoming], layer: RoomLayer, *, again: str = "") -> None:
        self.messages = messages
        self._layer = layer
        self._again = again
        self._spans: list[Span] = []
        self.entries: list[Entry] = []
        """What there is to publish."""
        self._rejected: list[tuple[Incoming, InvalidMessage]] = []
        """What can't be published, and why."""
        for message in messages:
            for delivery in message.deliveries:
                if delivery.targets:
                    self._add(message, delivery)
        self.lag: float | None = None
        """Seconds from the oldest message until they were published, once that is known."""
        self._answer: asyncio.Future[list[list[bytes]]]

    def _add(self, message: Incoming, delivery: Delivery) -> None:
        try:
            self.entries.append(self._entry(message, delivery))
        except Exception as error:
            report("batch")
            self._rejected.append((message, InvalidMessage("internal", spelled(error))))

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

    def has_work(self, handlers: Handlers) -> bool:
        """Whether there is anything to `handle`."""
        return bool(
            self._rejected
            or any(message.error for message in self.messages)
            or any(map(handlers.concern, self.messages))
        )

    async def handle(self, pipes: Pipes, handlers: Handlers) -> None:
        """Run handlers, and keep what is not valid. Raises `redis.RedisError`: then handle the same again."""
        invalid = [(message, message.error) for message in self.messages if message.error is not None]
        letters = [
            dead_letter(pipes, error, message.source, message.raw)
            for message, error in (*invalid, *self._rejected)
            if not message.is_repeated
        ]
        await handlers.run(pipes, self.messages)
        for letter in letters:
            await letter

    def send(
        self, pipes: Pipes, *, cursor: roomlog.Cursor = NO_CURSOR, lease: roomlog.Lease = NO_LEASE
    ) -> None:
        """Begin to publish, and to move the cursor; `settle` tells how that went."""
        self._pipes, self._cursor = pipes, cursor
        self._answer = self._append(self.entries, cursor, lease)
        if self._spans:
            self._answer.add_done_callback(self._end_spans)

    def _append(
        self, entries: Sequence[Entry], cursor: roomlog.Cursor, lease: roomlog.Lease = NO_LEASE
    ) -> asyncio.Future[list[list[bytes]]]:
        publish = self._layer.appends_publish
        return roomlog.send_append(
            self._pipes, entries, lease=lease, cursor=cursor, again=self._again, publish=publish
        )

    async def settle(self) -> None:
        """Return once it is done. Raises `redis.RedisError`: then all of it again does what is left."""
        try:
            appended = await self._answer
        except ResponseError as error:
            # Of what was refused Redis may have done a part: only what a stream brought can be repeated.
            if not (is_refusal(error) and self.messages[0].id):
                raise
            appended = await self._append_singly()
        self._count(appended)
        self._measure(appended)
        if not self._layer.appends_publish:
            await self._layer.pass_on(self.entries, appended)

    async def _append_singly(self) -> list[list[bytes]]:
        """One of them is what Redis refuses: it must not hold up the others."""
        messages = {message.order: message for message in self.messages}
        entries, self.entries, appended = self.entries, [], []
        for entry in entries:
            try:
                appended += await self._append([entry], NO_CURSOR)
                self.entries.append(entry)
            except ResponseError as error:
                if not is_refusal(error):
                    raise
                message, reason = messages[entry.entry], InvalidMessage("refused", spelled(error))
                await dead_letter(self._pipes, reason, message.source, message.raw)
        await self._append([], self._cursor)
        return appended

    def _count(self, appended: Sequence[Sequence[bytes]]) -> None:
        left_out = [
            entry for entry, positions in zip(self.entries, appended, strict=False) if not any(positions)
        ]
        _DELIVERED.inc(len(appended) - len(left_out))
        _DUPLICATE.inc(len([entry for entry in left_out if not entry.entry or entry.entry > self._again]))
        if dropped := len(self.entries) - len(appended):
            drop(dropped, "the lease is another bridge's")

    def _measure(self, appended: Sequence[Sequence[bytes]]) -> None:
        """Positions are times: Redis published at that of the first one."""
        oldest = self.messages[0]
        known = (int(position) for positions in appended for position in positions if position > b"0")
        if oldest.id and not oldest.is_repeated and (position := next(known, None)) is not None:
            self.lag = max(position / 1e6 - oldest.at, 0.0)

    def _end_spans(self, *_: Any) -> None:
        for span in self._spans:
            span.end()
