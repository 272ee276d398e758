"""Batches: bus entries that go to Redis together."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Self

from redis.exceptions import LockNotOwnedError

from realtime.bridge.bus_entry import BusEntry
from realtime.bridge.bus_handlers import Handlers
from realtime.bridge.dead_letters import dead_letter, drop
from realtime.layers import history
from realtime.layers.history import NO_CURSOR, NO_LEASE
from realtime.layers.interface import RoomLayer, room_layer
from realtime.protocol.bus_message import BusMessage, InvalidMessage, subjects
from realtime.protocol.publication import Draft
from realtime.redis.pipelining import Pipes
from realtime.telemetry import metrics, tracing
from realtime.telemetry.logs import spelled

BATCH_BYTES = 1 << 20
"""About as many bytes go to Redis at once, unless a single entry has more."""
BATCH_ROOMS = 1000
"""The same for rooms, in each of which Redis has something to do."""

_DELIVERED = metrics.BUS_MESSAGES.labels("delivered")
_DUPLICATE = metrics.BUS_MESSAGES.labels("duplicate")


def in_batches(entries: Sequence[BusEntry], handlers: Handlers) -> Iterator[list[BusEntry]]:
    """Entries in order, in parts of bounded size.

    The handlers of a part run before it is published. So an entry whose handlers concern the subject of an earlier
    entry, or a room that the earlier entry goes to, begins a new part: it must not overtake the earlier one.
    """
    has_handlers = any(map(handlers.apply_to, entries))
    part: list[BusEntry] = []
    size = rooms = 0
    touched: set[str] = set()
    for entry in entries:
        targets = sum([len(message.targets) for message in entry.messages])
        if part and (
            size + len(entry.raw) > BATCH_BYTES
            or rooms + targets > BATCH_ROOMS
            or (touched and handlers.apply_to(entry) and _would_overtake(entry, touched))
        ):
            yield part
            part, size, rooms, touched = [], 0, 0, set()
        part.append(entry)
        size += len(entry.raw)
        rooms += targets
        if has_handlers:
            touched |= _touched(entry)
    if part:
        yield part


def _would_overtake(entry: BusEntry, touched: set[str]) -> bool:
    names = set[str]().union(*[subjects(message.payload) for message in entry.messages])
    return not names or not names.isdisjoint(touched)


def _touched(entry: BusEntry) -> set[str]:
    """The subjects of what is published, and the rooms that it goes to."""
    published = [message for message in entry.messages if message.targets]
    rooms = {room for message in published for _, room in message.targets}
    return rooms.union(*[subjects(message.payload) for message in published])


class Batch:
    """Publishes what entries hold, and moves the cursor. It is packed when it is made; once sent, it is awaited.

    Awaited, it has the seconds from when the oldest entry was added until it was published, if that is known; messages
    that Redis refuses have become dead letters. Or it raises `redis.RedisError`: then sending all of it again does what
    is left.
    """

    def __init__(
        self,
        entries: Sequence[BusEntry],
        pipes: Pipes,
        *,
        cursor: history.Cursor = NO_CURSOR,
        lease: history.Lease = NO_LEASE,
        layer: RoomLayer | None = None,
        again: str = "",
    ) -> None:
        self._entries = entries
        self._pipes = pipes
        self._cursor = cursor
        self._spans: list[tracing.Span] = []
        self._drafts = [
            self._draft(entry, message) for entry in entries for message in entry.messages if message.targets
        ]
        self._send = (layer or room_layer()).prepare(
            pipes, self._drafts, lease=lease, cursor=cursor, again=again
        )
        self._sent: history.Appending

    def _draft(self, entry: BusEntry, message: BusMessage) -> Draft:
        """What is appended, once for all the clients."""
        span = None if entry.is_repeated else tracing.deliver(message.event, message.traceparent)
        if span is not None:
            self._spans.append(span)
        return message.draft(
            source=entry.source if entry.id else "",
            entry=entry.order if entry.id else "",
            traceparent=(span and tracing.traceparent(span)) or "",
        )

    def send(self) -> Self:
        """Begin to publish, and to move the cursor. It is on its way when this returns."""
        self._sent = self._send()
        self._sent.add_done_callback(self._on_answer)  # no task: it would cost more than what it has to do
        return self

    def __await__(self) -> Generator[Any, None, float | None]:
        return self._finish().__await__()

    async def _finish(self) -> float | None:
        appended = await self._sent
        if self._drafts and not appended:
            raise LockNotOwnedError("the lease has ended")
        if refusals := history.refusals(appended, self._drafts):
            await self._keep(refusals)
        return self._lag(appended)

    def _on_answer(self, sent: history.Appending) -> None:
        for span in self._spans:
            span.end()
        if not sent.cancelled() and sent.exception() is None:
            appended = sent.result()
            self._count(appended)
            if (lag := self._lag(appended)) is not None:
                metrics.BUS_LAG.observe(lag)

    async def _keep(self, refusals: Sequence[Sequence[bytes]]) -> None:
        """Keep the messages that Redis refuses as dead letters, before the cursor says that all was done."""
        entries = [entry for entry in self._entries for message in entry.messages if message.targets]
        reasons = {
            int(number): InvalidMessage("refused", why.decode(errors="replace")) for number, why in refusals
        }
        letters = [
            dead_letter(self._pipes, entries[number], error) for number, error in sorted(reasons.items())
        ]
        if self._cursor is NO_CURSOR:  # nothing is sent again
            kept = await asyncio.gather(*letters, return_exceptions=True)
            if lost := [error for error in kept if isinstance(error, BaseException)]:
                drop(len(lost), spelled(lost[0]))
        else:
            await asyncio.gather(*letters)
            await history.prepare_append(self._pipes, [], cursor=self._cursor)()

    def _count(self, appended: Sequence[Sequence[bytes]]) -> None:
        positions, refusals = appended[: len(self._drafts)], history.refusals(appended, self._drafts)
        delivered = sum(map(any, positions))  # in some room; a message that was left out is in none
        refused = sum([not any(positions[int(number)]) for number, _ in refusals])
        _DELIVERED.inc(delivered)
        _DUPLICATE.inc(len(positions) - delivered - refused)

    def _lag(self, appended: Sequence[Sequence[bytes]]) -> float | None:
        """Positions are times: Redis published when it gave the first one."""
        oldest = self._entries[0]
        answers = appended[: len(self._drafts)]
        known = (int(position) for positions in answers for position in positions if position > b"0")
        if not oldest.id or oldest.is_repeated or (position := next(known, None)) is None:
            return None
        return max(position / 1e6 - oldest.at, 0.0)
