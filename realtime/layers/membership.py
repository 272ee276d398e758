"""What the bridge and the connections need of a channel layer, and any other layer than ours made to fit.

`realtime.layers.RoomChannelLayer` is a `RoomLayer` itself. The layers of channels-redis are wrapped in a `StockLayer`:
with them a message is delivered at most once, and nothing is recovered (a system check says so). No other code asks
which layer there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from channels.layers import get_channel_layer
from redis.exceptions import RedisError

from realtime.layers import history as roomlog
from realtime.layers.fanout import Group
from realtime.layers.listener import Listener, State
from realtime.layers.outlets import Ephemeral, Mailbox, Outlet, PublicationBatch, text_frame
from realtime.protocol.publication import Entry, Publication, Unrecoverable
from realtime.protocol.rooms import portable_group, room_of_group
from realtime.redis.pipelining import pipes
from realtime.tasks.supervision import supervise
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds before a channel whose layer failed is received from again."""
WAITING_BYTES = 1024 * 1024
"""Publications kept for a listener that has not started, or whose client reads too slowly."""


class RoomLayer(Protocol):
    """Rooms on a channel layer. A group is a room of a namespace (`realtime.protocol.rooms.group_name`)."""

    appends_publish: bool
    """Whether appending to a room's history also publishes; else `pass_on` does."""

    async def pass_on(self, entries: Sequence[Entry], positions: Sequence[Sequence[bytes]]) -> None:
        """Publish what was appended, if that has not been done yet. Raises what the layer raises."""

    async def attach(self, mailbox: Mailbox) -> str:
        """A new channel whose messages are handed to `mailbox`. Raises `redis.RedisError`."""

    def detach(self, channel: str) -> None:
        """The channel is over."""

    async def group_add(self, group: str, channel: str) -> None:
        """Add an attached channel to a group of messages. Raises `redis.RedisError`."""

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send a message to a group. Raises `redis.RedisError`."""

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send a message to a channel. Raises `redis.RedisError`."""

    async def enter(self, groups: Sequence[str], outlet: Outlet, channel: str) -> list[Listener]:
        """Enter rooms; returns a paused listener for each, at the room's end. Raises `redis.RedisError`."""

    def leave(self, listener: Listener, channel: str) -> None:
        """Leave a room: nothing of it is written any more."""

    async def missed(self, listener: Listener, since: str) -> int | None:
        """How many publications came after an offset; None when not all of them are known.

        The listener then stands at that offset, or at the room's end. Raises `redis.RedisError`.
        """

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        """Send an event that is stored nowhere. Raises `redis.RedisError`."""

    async def dead(self, channels: Sequence[str]) -> set[str]:
        """Channels that are known to have nothing behind them any more. Raises `redis.RedisError`."""

    def when_restored(self, review: Callable[[float], Awaitable[None]]) -> None:
        """Await `review(seconds)` when messages to groups may have been lost for so long, if the layer can tell."""


def room_layer(alias: str = "default") -> RoomLayer:
    """The channel layer of that name as a layer of rooms."""
    layer: Any = get_channel_layer(alias)
    if "rooms" in layer.extensions:
        return layer  # type: ignore[no-any-return]
    return StockLayer.around(layer)


class StockLayer:
    """Rooms on any layer of the specification: at most once, and without recovery."""

    appends_publish = False

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self.group_add = layer.group_add
        self.group_send = layer.group_send
        self.send = layer.send
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._listeners: dict[str, dict[str, Listener]] = {}
        """By channel and room."""
        self._leaving: dict[tuple[str, str], asyncio.Task[None]] = {}
        """By group and channel."""

    @classmethod
    def around(cls, layer: Any) -> StockLayer:
        """The one wrapper of a layer."""
        if layer not in _wrapped:
            _wrapped[layer] = cls(layer)
        return _wrapped[layer]

    async def pass_on(self, entries: Sequence[Entry], positions: Sequence[Sequence[bytes]]) -> None:
        for entry, of_entry in zip(entries, positions, strict=False):
            for (group, head), position in zip(entry.rooms, of_entry, strict=True):
                if position:
                    await self._layer.group_send(
                        portable_group(group),
                        {
                            "type": "room.frame",
                            "room": room_of_group(group),
                            "offset": position.decode(),
                            "text": (head + position + entry.tail).decode(),
                            "except": entry.exclude,
                        },
                    )

    async def attach(self, mailbox: Mailbox) -> str:
        channel: str = await self._layer.new_channel()
        self._listeners[channel] = {}
        work = supervise("channel", lambda: self._receive(channel, mailbox))
        self._readers[channel] = asyncio.create_task(work, name="receive")
        return channel

    def detach(self, channel: str) -> None:
        self._listeners.pop(channel, None)
        if reader := self._readers.pop(channel, None):
            reader.cancel()

    async def _receive(self, channel: str, mailbox: Mailbox) -> None:
        while True:
            try:
                message = await self._layer.receive(channel)
                self._take(message, self._listeners[channel], mailbox)
            except (RedisError, OSError) as error:
                logger.warning("channel not received from", extra={"error": spelled(error)})
                await asyncio.sleep(PAUSE)

    @staticmethod
    def _take(message: dict[str, Any], listeners: dict[str, Listener], mailbox: Mailbox) -> None:
        kind = message["type"]
        if kind not in {"room.frame", "room.ephemeral"}:
            mailbox.message(message)
        elif (listener := listeners.get(message["room"])) is None:
            return
        elif kind == "room.frame":
            _publish(listener, message)
        elif listener.is_open and message["sender"] != listener.outlet.connection_id:
            listener.write(text_frame(message["text"].encode()))

    async def enter(self, groups: Sequence[str], outlet: Outlet, channel: str) -> list[Listener]:
        listeners = [Listener(Group(group, _kept), outlet) for group in groups]
        try:
            for listener in listeners:
                # First, so that publications from here on are kept for it.
                self._listeners[channel][listener.group.room or ""] = listener
                if leaving := self._leaving.get((listener.group.name, channel)):
                    await asyncio.wait([leaving])  # or it takes the channel out again
                await self._layer.group_add(portable_group(listener.group.name), channel)
            ends = await roomlog.ends(groups, pipes())
        except BaseException:
            for listener in listeners:
                self.leave(listener, channel)
            raise
        for listener in listeners:
            listener.group.learn(ends[listener.group.name], 0)
            listener.place(ends[listener.group.name])
        return listeners

    def leave(self, listener: Listener, channel: str) -> None:
        listener.close()
        listeners = self._listeners.get(channel, {})
        if listeners.get(listener.group.room or "") is listener:
            del listeners[listener.group.room or ""]
        name = (listener.group.name, channel)
        task = self._leaving[name] = asyncio.create_task(self._discard(*name), name="leave")
        task.add_done_callback(lambda done: self._leaving.get(name) is done and self._leaving.pop(name))

    async def _discard(self, group: str, channel: str) -> None:
        with contextlib.suppress(
            RedisError, OSError
        ):  # the channel gets messages that it has no listener for
            await self._layer.group_discard(portable_group(group), channel)

    async def missed(self, listener: Listener, since: str) -> int | None:
        return None

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        for group in groups:
            await self._layer.group_send(portable_group(group), ephemeral.message())

    async def dead(self, channels: Sequence[str]) -> set[str]:
        return set()

    def when_restored(self, review: Callable[[float], Awaitable[None]]) -> None:
        """These layers do not tell."""


def _publish(listener: Listener, message: dict[str, Any]) -> None:
    """Hand a publication to its listener, or keep it until the listener has started."""
    group, position = listener.group, int(message["offset"])
    if position <= group.tail:
        return
    group.receive(Publication(position, group.tail, message.get("except") or "", message["text"].encode()))
    if group.waiting_bytes > WAITING_BYTES:
        group.clear()
    while group.waiting and listener.state is State.LIVE:
        batch = group.next_item()
        assert isinstance(batch, PublicationBatch)  # noqa: S101
        listener.take(batch)


async def _kept(group: Group, position: int) -> PublicationBatch | None:
    """The only history there is: what came before the listener had started, unless it was too much to keep."""
    first = group.waiting[0] if group.waiting else None
    start = first.previous if isinstance(first, Publication) else group.tail
    if first is None or start != position:
        raise Unrecoverable(start)
    batch = group.next_item()
    assert isinstance(batch, PublicationBatch)  # noqa: S101
    return batch


_wrapped: WeakKeyDictionary[Any, StockLayer] = WeakKeyDictionary()
