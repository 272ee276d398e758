"""A group: its members in this instance, where its room ends, and what waits to be handed to the members."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import msgspec

from realtime.layers import history
from realtime.layers.listener import Listener
from realtime.layers.outlets import Ephemeral, Mailbox, PublicationBatch
from realtime.protocol.publication import Publication
from realtime.protocol.rooms import room_of_group
from realtime.telemetry import metrics

logger = logging.getLogger(__name__)

BATCH_BYTES = 256 * 1024
"""Size of the publications that are handed out together."""


class Message:
    """A message of the channel layer's specification (`group_send`), as it arrived. Raises `DecodeError`."""

    __slots__ = ("frame",)

    def __init__(self, frame: bytes) -> None:
        msgspec.msgpack.decode(frame)
        self.frame = frame

    def give(self, mailbox: Mailbox) -> bool:
        """Hand it to a receiver, which may change it."""
        mailbox.message(msgspec.msgpack.decode(self.frame))
        return True


OVERFLOW = Message(msgspec.msgpack.encode({"type": "channel.overflow"}))
"""Messages were dropped."""


class Compare:
    """The end of the room's history, for listeners that may lack something without knowing it."""

    __slots__ = ("end",)
    frame = b""

    def __init__(self, end: int) -> None:
        self.end = end

    def give(self, listener: Listener) -> bool:
        """Let a listener compare its position."""
        listener.compare(self.end)
        return True


Waiting = Publication | Ephemeral | Message | Compare
Item = PublicationBatch | Ephemeral | Message | Compare

NOTHING: deque[Waiting] = deque(maxlen=0)
"""Waits in every group in which nothing waits, as in most of them: each deque takes 760 bytes."""


class Group:
    """A group of Channels' specification; also a room, if its name says so (`realtime.protocol.rooms`)."""

    __slots__ = (
        "_read",
        "channel",
        "fan_out",
        "is_refused",
        "listeners",
        "lost",
        "members",
        "name",
        "opening",
        "room",
        "tail",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, name: str, read: Callable[[Group, int], Awaitable[PublicationBatch | None]]) -> None:
        self.name = name
        self.room = room_of_group(name)
        self.channel = history.channel(name)
        self.members: dict[str, Mailbox] = {}
        """Channels that joined by `group_add`."""
        self.listeners: dict[Listener, None] = {}
        self.tail = 0
        """The last position that this instance has received, or read from the history."""
        self.lost = 0
        """The last position that Redis has lost, until Redis knows that, too."""
        self.waiting = NOTHING
        self.waiting_bytes = 0
        self.fan_out: Iterator[bool] | None = None
        """The fan-out that is under way."""
        self.opening: asyncio.Task[None] | None = None
        """Until the group is subscribed to and its tail is known. A task that is done is not kept: it takes memory."""
        self.is_refused = False
        """Redis refuses the room's keys, which are not ours."""
        self._read = read

    def __len__(self) -> int:
        return len(self.members) + len(self.listeners)

    # --- The room's history -----------------------------------------------------------------------

    @property
    def received(self) -> int:
        """What every command says that reads the history: if Redis does not know it, the history is cut."""
        return self.lost or self.tail

    def receive(self, publication: Publication) -> bool:
        """A publication has arrived. False: it shows that Redis has lost some that had arrived before."""
        is_consistent = True
        if publication.position > self.tail:
            if publication.previous < self.tail:  # it follows something older than the tail
                self.lost = self.tail
                is_consistent = False
            self.tail = publication.position
        self.put(publication)
        return is_consistent

    def receive_cut(self, end: int) -> None:
        """The history was cut, and begins anew at `end`: listeners find that out by reading."""
        self.tail = max(self.tail, end)
        self.put(Compare(end))

    def learn(self, end: int, tail: int, received: int = 0) -> None:
        """The history ends at `end`, as a command has read that said `received` and was sent when the tail was `tail`.

        Redis is believed; but its answer does not take back what has arrived since the command was sent.
        """
        if self.tail == tail or end > self.tail:
            self.tail = end
        if self.lost == received:
            self.lost = 0

    async def read(self, position: int) -> PublicationBatch | None:
        """The first publications above a position in the history.

        Raises `Unrecoverable` when not all of them are known, or `redis.RedisError`.
        """
        return await self._read(self, position)

    # --- What waits for its fan-out ---------------------------------------------------------------

    def put(self, item: Waiting) -> None:
        """Let something wait for its fan-out."""
        if self.waiting is NOTHING:
            self.waiting = deque()
        self.waiting.append(item)
        self.waiting_bytes += len(item.frame)

    def next_item(self) -> Item:
        """Take what is handed out next: publications that follow each other go together, up to `BATCH_BYTES`."""
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
        self.waiting = self.waiting or NOTHING
        return PublicationBatch(batch) if isinstance(first, Publication) else first

    def receivers(self, item: Item) -> Sequence[Any]:
        """The members that an item is for, as of now."""
        if isinstance(item, Message):
            return (*self.members.values(), *(listener.outlet for listener in self.listeners))
        return tuple(self.listeners)

    def clear(self) -> None:
        """Forget all that waits."""
        self.waiting = NOTHING
        self.waiting_bytes = 0

    def give_up_waiting(self) -> None:
        """Forget what waits: listeners read publications from the history, and a loss of messages is reported."""
        lost = sum(isinstance(item, Message) for item in self.waiting)
        self.clear()
        self.put(Compare(self.tail))
        if lost:
            metrics.DROPPED.inc()
            logger.warning("messages dropped", extra={"group": self.name, "messages": lost})
            self.put(OVERFLOW)
