"""Fan-out: handing what a group receives to its members in this process, fairly and without waiting for anything.

A small group is served at once. A large one is served in slices of `SLICE` members, one slice a turn of the event loop,
and large groups take turns, so that none delays another, or anything else that the process has to do, by more than one
slice. Nothing here awaits and nothing is cancelled; each listener keeps its own position (`realtime.layers.listener`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from time import perf_counter, time_ns
from typing import Any

import msgspec

from realtime.layers import history as roomlog
from realtime.layers.listener import Listener, State
from realtime.layers.outlets import Ephemeral, Mailbox, PublicationBatch
from realtime.protocol.publication import Publication
from realtime.protocol.rooms import room_of_group
from realtime.telemetry import metrics, tracing
from realtime.telemetry.metrics import tally

logger = logging.getLogger(__name__)

SLICE = 200
"""Members served in one turn of the event loop."""
BATCH_BYTES = 256 * 1024
"""Publications that are handed out together."""
WAITING_BYTES = 16 * 1024 * 1024
"""Publications that may wait for their fan-out in a process. Beyond it, listeners read them from the history."""


class Message:
    """A message of the channel layer's specification (`group_send`), as it arrived. Raises `DecodeError`."""

    __slots__ = ("frame",)

    def __init__(self, frame: bytes) -> None:
        msgspec.msgpack.decode(frame)
        self.frame = frame

    def give(self, mailbox: Mailbox) -> None:
        """Hand it to a receiver, which may change it."""
        mailbox.message(msgspec.msgpack.decode(self.frame))


OVERFLOW = Message(msgspec.msgpack.encode({"type": "channel.overflow"}))
"""Messages were dropped."""


class Compare:
    """The end of the room's history, for listeners that may lack something without knowing it."""

    __slots__ = ("end",)
    frame = b""

    def __init__(self, end: int) -> None:
        self.end = end

    def give(self, listener: Listener) -> None:
        """Let a listener compare its position."""
        listener.compare(self.end)


Waiting = Publication | Ephemeral | Message | Compare
Item = PublicationBatch | Ephemeral | Message | Compare


class Group:
    """A group's members in this process, and what waits to be handed to them."""

    __slots__ = (
        "_hears_orders",
        "_read",
        "channel",
        "fan_out",
        "listeners",
        "members",
        "name",
        "opening",
        "room",
        "tail",
        "waiting",
        "waiting_bytes",
    )

    def __init__(
        self,
        name: str,
        read: Callable[[Group, int], Awaitable[PublicationBatch | None]],
        hears_orders: asyncio.Event | None = None,
    ) -> None:
        self.name = name
        self.room = room_of_group(name)
        self.channel = roomlog.channel(name)
        self.members: dict[str, Mailbox] = {}
        """Channels that joined by `group_add`."""
        self.listeners: dict[Listener, None] = {}
        self.tail = 0
        """The last position that this process has received, or read from the history."""
        self.waiting: deque[Waiting] = deque()
        self.waiting_bytes = 0
        self.fan_out: Iterator[bool] | None = None
        """The fan-out that is under way."""
        self.opening: asyncio.Future[None] | None = None
        """Until the group is subscribed to and its tail is known. A task that is done is not kept: it takes memory."""
        self._read = read
        self._hears_orders = hears_orders

    def __len__(self) -> int:
        return len(self.members) + len(self.listeners)

    def receive(self, publication: Publication) -> None:
        """A publication has arrived."""
        if publication.position > self.tail:
            if publication.previous < self.tail:
                self._regress()  # it follows something older than what was heard of before
            self.tail = publication.position
        self.put(publication)

    def put(self, item: Waiting) -> None:
        """Let something wait for its fan-out."""
        self.waiting.append(item)
        self.waiting_bytes += len(item.frame)

    def learn(self, end: int, tail: int) -> None:
        """The history ends at `end`, as read by a command that was sent when the tail was `tail`.

        Redis is believed, also when it has lost what came last; but it can't take back what has arrived since it was
        asked.
        """
        if self.tail == tail or end > self.tail:
            if end < self.tail:
                self._regress()
            self.tail = end

    def _regress(self) -> None:
        """Redis has lost publications up to the tail: a listener that had not got them yet will not find them."""
        for listener in self.listeners:
            listener.regress(self.tail)

    async def read(self, position: int) -> PublicationBatch | None:
        """The first publications above a position in the history.

        Raises `Unrecoverable` when not all of them are known, or `redis.RedisError`.
        """
        return await self._read(self, position)

    async def until_orders_are_heard(self) -> None:
        """Return once no order can have been missed: until then nothing that was read is written."""
        while self._hears_orders is not None and not self._hears_orders.is_set():
            await self._hears_orders.wait()

    def next_item(self) -> Item:
        """What is to be handed out next: of publications as many as follow each other, up to `BATCH_BYTES`."""
        first = self.waiting.popleft()
        size = len(first.frame)
        if isinstance(first, Publication):
            batch = [first]
            while self.waiting and size < BATCH_BYTES:
                following = self.waiting[0]
                if not isinstance(following, Publication) or following.previous != batch[-1].position:
                    break
                self.waiting.popleft()
                batch.append(following)
                size += len(following.frame)
        self.waiting_bytes -= size
        return PublicationBatch(batch) if isinstance(first, Publication) else first

    def receivers(self, item: Item) -> Sequence[Any]:
        """The members that an item is for, as of now."""
        if isinstance(item, Message):
            return (*self.members.values(), *(listener.outlet for listener in self.listeners))
        return tuple(self.listeners)

    def clear(self) -> None:
        """Forget all that waits."""
        self.waiting.clear()
        self.waiting_bytes = 0

    def give_up_waiting(self) -> None:
        """Forget what waits: listeners read publications from the history, and a loss of messages is told."""
        lost = sum(isinstance(item, Message) for item in self.waiting)
        self.clear()
        self.put(Compare(self.tail))
        if lost:
            metrics.DROPPED.inc()
            logger.warning("messages dropped", extra={"group": self.name, "messages": lost})
            self.put(OVERFLOW)


def _fan_out(group: Group) -> Iterator[bool]:
    """Hand out all that waits in a group, a slice of its members at each step.

    An item goes to those who are members when its turn comes. A mistake ends the item, not the fan-out of the room.
    """
    while group.waiting:
        item = group.next_item()
        try:
            receivers = group.receivers(item)
            if isinstance(item, PublicationBatch) and len(receivers) <= SLICE and not tracing.tracer:
                _publish(item, receivers)  # nearly always: there is nothing to measure
                tally.fan_out(item.publications, len(receivers))
                yield True
                continue
            served = 0
            started = perf_counter() if len(receivers) > SLICE else 0.0
            begun = time_ns() if tracing.tracer else 0
            for start in range(0, len(receivers), SLICE):
                served += _serve(item, receivers[start : start + SLICE])
                yield True
            _count(item, served, started, begun)
        except Exception:
            logger.exception("fan-out failed", extra={"room": group.room})
            if isinstance(item, PublicationBatch):
                group.put(Compare(group.tail))  # listeners that were not served yet find out what they lack


def _serve(item: Item, receivers: Sequence[Any]) -> int:
    """Hand an item to some receivers; returns how many of them took it."""
    if isinstance(item, PublicationBatch):
        _publish(item, receivers)
        return len(receivers)
    if isinstance(item, Ephemeral):
        return _each(receivers, partial(_emit, item))
    return _each(receivers, item.give)


def _count(item: Item, served: int, started: float, begun: int) -> None:
    if isinstance(item, PublicationBatch):
        if started:
            metrics.FANOUT_SECONDS.observe(perf_counter() - started)
        if begun:
            tracing.fanned_out(item.publications, served, begun)
        tally.fan_out(item.publications, served)
    elif isinstance(item, Ephemeral):
        tally.sent("ephemeral", item.frame, served)


class FanOut:
    """Serves the groups of a process."""

    def __init__(self) -> None:
        self._turns: deque[Group] = deque()
        """Groups with a fan-out under way; each gets one slice in turn."""
        self._is_scheduled = False

    def serve(self, group: Group) -> None:
        """Hand out what waits in a group: at once if the group is small, else in the turns to come."""
        if group.fan_out is None and len(group) <= SLICE:
            for _ in _fan_out(group):
                pass
            return
        if group.fan_out is None and group.waiting:
            group.fan_out = _fan_out(group)
            self._turns.append(group)
            self._schedule()
        if sum(busy.waiting_bytes for busy in self._turns) > WAITING_BYTES:
            group.give_up_waiting()

    def stop(self) -> None:
        """Give up what is under way in rooms: they are compared with their histories later."""
        for group in [group for group in self._turns if group.room is not None]:
            self._turns.remove(group)
            group.fan_out = None
            group.clear()

    def _schedule(self) -> None:
        if self._turns and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        if self._turns:
            group = self._turns.popleft()
            assert group.fan_out is not None  # noqa: S101
            if next(group.fan_out, False):
                self._turns.append(group)
            else:
                group.fan_out = None
        self._schedule()


def _publish(batch: PublicationBatch, listeners: Sequence[Listener]) -> None:
    """The busiest loop of the project: nearly every listener stands right before the batch and gets all of it."""
    wire, previous, last, live = batch.wire(), batch.previous, batch.last, State.LIVE
    is_for_all = not batch.excluded
    for listener in listeners:
        try:
            if listener.position == previous and listener.state is live and is_for_all:
                listener.write(wire)
                listener.position = last
            else:
                listener.take(batch)
        except Exception:
            logger.exception("delivery failed", extra=_about(listener.outlet))


def _each(receivers: Sequence[Any], give: Callable[[Any], object]) -> int:
    given = 0
    for receiver in receivers:
        try:
            given += give(receiver) is not False
        except Exception:
            logger.exception("delivery failed", extra=_about(receiver))
    return given


def _emit(ephemeral: Ephemeral, listener: Listener) -> bool:
    if not listener.is_open or listener.outlet.connection_id == ephemeral.sender:
        return False
    if listener.outlet.is_behind:
        metrics.EPHEMERAL_DROPPED.inc()  # a client that reads too slowly gets what matters first
        return False
    listener.write(ephemeral.wire)
    return True


def _about(receiver: object) -> dict[str, str]:
    outlet = receiver.outlet if isinstance(receiver, Listener) else receiver
    return {"connection_id": getattr(outlet, "connection_id", "")}
