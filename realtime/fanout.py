"""Fan-out: handing what a group receives to its members in this process, fairly and without waiting for anything.

A small group is served at once. A large one is served in slices of `SLICE` members, one slice a turn of the event loop,
and large groups take turns, so that none delays another, or anything else that the process has to do, by more than one
slice. Nothing here awaits and nothing is cancelled; each listener keeps its own position (`realtime.listener`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter, time_ns
from typing import Any

from realtime import metrics, roomlog, tracing
from realtime.delivery import Ephemeral, Mailbox, PublicationBatch, copy
from realtime.listener import Listener, State
from realtime.metrics import tally
from realtime.roomlog import Publication
from realtime.rooms import room_of_group

logger = logging.getLogger(__name__)

SLICE = 200
"""Members served in one turn of the event loop."""
BATCH_BYTES = 256 * 1024
"""Publications that are handed out together."""
WAITING_BYTES = 16 * 1024 * 1024
"""Publications that may wait for their fan-out in a process. Beyond it, listeners read them from the history."""


class Message:
    """A message of the channel layer's specification (`group_send`)."""

    __slots__ = ("message",)

    def __init__(self, message: dict[str, Any]) -> None:
        self.message = message

    def give(self, mailbox: Mailbox) -> None:
        """Hand over a copy."""
        mailbox.message(copy(self.message))


class Compare:
    """The end of the room's history, for listeners that may lack something without knowing it."""

    __slots__ = ("end",)

    def __init__(self, end: int) -> None:
        self.end = end


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
        "ready",
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
        self.waiting: deque[Publication | Ephemeral | Message | Compare] = deque()
        self.waiting_bytes = 0
        self.fan_out: Pass | None = None
        """The fan-out that is under way."""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the group is subscribed to and its tail is known."""
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

    def put(self, item: Publication | Ephemeral | Message | Compare) -> None:
        """Let something wait for its fan-out."""
        self.waiting.append(item)
        if isinstance(item, Publication | Ephemeral):
            self.waiting_bytes += len(item.frame)

    def learn(self, end: int, tail: int) -> None:
        """The history ends at `end`, as read by a command that was sent when the tail was `tail`.

        Redis is believed, also when it has lost what came last; but not about what has arrived since it was asked.
        """
        if self.tail == tail:
            if end < tail:
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
        if not isinstance(first, Publication):
            if isinstance(first, Ephemeral):
                self.waiting_bytes -= len(first.frame)
            return first
        batch, size = [first], len(first.frame)
        while self.waiting and size < BATCH_BYTES:
            following = self.waiting[0]
            if not isinstance(following, Publication) or following.previous != batch[-1].position:
                break
            self.waiting.popleft()
            batch.append(following)
            size += len(following.frame)
        self.waiting_bytes -= size
        return PublicationBatch(batch)

    def clear(self) -> None:
        """Forget all that waits."""
        self.waiting.clear()
        self.waiting_bytes = 0

    def give_up_waiting(self) -> None:
        """Forget what waits, but for messages: the listeners read publications from the history."""
        kept = [item for item in self.waiting if isinstance(item, Message | Compare)]
        self.clear()
        self.waiting.extend([*kept, Compare(self.tail)])


class Pass:
    """One item on its way to everyone who was in the group when the pass began."""

    __slots__ = ("_at", "_begun", "_group", "_receivers", "_sent", "_started", "item")

    def __init__(self, group: Group, item: Item) -> None:
        self.item = item
        self._group = group
        self._receivers: Sequence[Any] = tuple(group.listeners)
        if isinstance(self.item, Message):
            self._receivers = (*group.members.values(), *(listener.outlet for listener in group.listeners))
        self._at = 0
        self._sent = 0
        """Connections that an ephemeral event was written to."""
        self._started = perf_counter() if len(self._receivers) > SLICE else 0.0
        self._begun = time_ns() if tracing.tracer else 0

    def step(self) -> bool:
        """Serve one slice; True when it was the last. A mistake in it ends the pass, not the fan-out of the room."""
        try:
            return self._serve()
        except Exception:
            _failed(self._group, self.item)
            return True

    def _serve(self) -> bool:
        part = self._receivers[self._at : self._at + SLICE] if self._started else self._receivers
        self._at += SLICE
        match self.item:
            case PublicationBatch():
                _publish(self.item, part)
            case Ephemeral():
                _each(part, self._emit)
            case Message():
                _each(part, self.item.give)
            case Compare(end=end):
                _each(part, lambda listener: listener.compare(end))
        if self._at < len(self._receivers):
            return False
        self._count()
        return True

    def _emit(self, listener: Listener) -> None:
        assert isinstance(self.item, Ephemeral)  # noqa: S101
        if listener.is_open and listener.outlet.connection_id != self.item.sender:
            if listener.outlet.is_behind:
                metrics.EPHEMERAL_DROPPED.inc()  # a client that reads too slowly gets what matters first
            else:
                self._sent += 1
                listener.write(self.item.wire)

    def _count(self) -> None:
        if isinstance(self.item, PublicationBatch):
            if self._started:
                metrics.FANOUT_SECONDS.observe(perf_counter() - self._started)
            if self._begun:
                tracing.fanned_out(self.item.publications, len(self._receivers), self._begun)
            tally.fan_out(self.item.publications, len(self._receivers))
        elif isinstance(self.item, Ephemeral):
            tally.sent("ephemeral", self.item.frame, self._sent)


class FanOut:
    """Serves the groups of a process."""

    def __init__(self) -> None:
        self._turns: deque[Group] = deque()
        """Groups with a pass under way; each gets one slice in turn."""
        self._is_scheduled = False

    def serve(self, group: Group) -> None:
        """Hand out what waits in a group: at once if the group is small, else in the turns to come."""
        if group.fan_out is None and len(group) <= SLICE:
            while group.waiting:
                self._serve_at_once(group, group.next_item())
            return
        if group.fan_out is None and group.waiting:
            group.fan_out = Pass(group, group.next_item())
            self._turns.append(group)
            self._schedule()
        self._bound(group)

    @staticmethod
    def _serve_at_once(group: Group, item: Item) -> None:
        try:
            if isinstance(item, PublicationBatch) and not tracing.tracer:
                listeners = tuple(group.listeners)  # nearly always: no need for a pass
                _publish(item, listeners)
                tally.fan_out(item.publications, len(listeners))
            else:
                Pass(group, item).step()
        except Exception:
            _failed(group, item)

    def _bound(self, group: Group) -> None:
        if sum(busy.waiting_bytes for busy in self._turns) > WAITING_BYTES:
            group.give_up_waiting()

    def _schedule(self) -> None:
        if self._turns and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def stop(self) -> None:
        """Give up what is under way in rooms: they are compared with their histories later."""
        for group in [group for group in self._turns if group.room is not None]:
            self._turns.remove(group)
            group.fan_out = None
            group.clear()

    def _turn(self) -> None:
        self._is_scheduled = False
        if not self._turns:
            return
        group = self._turns.popleft()
        assert group.fan_out is not None  # noqa: S101
        if group.fan_out.step():
            group.fan_out = Pass(group, group.next_item()) if group.waiting else None
        if group.fan_out is not None:
            self._turns.append(group)
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


def _failed(group: Group, item: Item) -> None:
    """A mistake of ours: listeners that were not served yet find out what they lack."""
    logger.exception("fan-out failed", extra={"room": group.room})  # noqa: LOG004  (called where it was caught)
    if isinstance(item, PublicationBatch):
        group.put(Compare(group.tail))


def _each(receivers: Sequence[Any], give: Callable[[Any], None]) -> None:
    for receiver in receivers:
        try:
            give(receiver)
        except Exception:
            logger.exception("delivery failed", extra=_about(receiver))


def _about(receiver: object) -> dict[str, str]:
    outlet = receiver.outlet if isinstance(receiver, Listener) else receiver
    return {"connection_id": getattr(outlet, "connection_id", "")}
