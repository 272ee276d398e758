"""Rooms on any channel layer that follows Channels' specification, such as those of channels-redis.

A message is delivered at most once, and nothing is recovered: a system check says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from realtime.layers import history
from realtime.layers.group import Group
from realtime.layers.listener import Listener, State
from realtime.layers.outlets import Ephemeral, Mailbox, Outlet, PublicationBatch
from realtime.protocol.publication import Draft, Publication, Unrecoverable
from realtime.protocol.rooms import portable_group, room_of_group
from realtime.redis.pipelining import Pipes, begin
from realtime.tasks.supervision import supervise
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds before a channel whose layer failed is received from again."""
WAITING_BYTES = 1024 * 1024
"""Size of the publications kept for a listener that has not started, or whose client reads too slowly."""


class StockLayer:
    """A `realtime.layers.interface.RoomLayer` around another layer."""

    emit_waits = True

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self.group_add = layer.group_add
        self.group_send = layer.group_send
        self.send = layer.send
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._groups: dict[str, dict[str, Group]] = {}
        """By channel and room; each has the channel's listener, and keeps what that has not taken yet."""
        self._leaving: dict[tuple[str, str], asyncio.Task[None]] = {}
        """By group and channel."""

    def prepare(
        self, pipes: Pipes, entries: Sequence[Draft], **options: Any
    ) -> Callable[[], history.Appending]:
        append = history.prepare_append(pipes, entries, publish=False, **options)
        return lambda: begin(self._publish(entries, append()))

    async def _publish(self, entries: Sequence[Draft], appending: history.Appending) -> list[list[bytes]]:
        appended = await appending
        for entry, positions in zip(entries, appended, strict=False):
            for (group, head), position in zip(entry.rooms, positions, strict=True):
                if position:
                    message = {
                        "type": "room.frame",
                        "room": room_of_group(group),
                        "offset": position.decode(),
                        "text": (head + position + entry.tail).decode(),
                        "except": entry.exclude,
                    }
                    await self._layer.group_send(portable_group(group), message)
        return appended

    async def attach(self, mailbox: Mailbox) -> str:
        channel: str = await self._layer.new_channel()
        self._groups[channel] = {}
        work = supervise("channel", lambda: self._receive(channel, mailbox))
        self._readers[channel] = asyncio.create_task(work, name="receive")
        return channel

    def detach(self, channel: str) -> None:
        self._groups.pop(channel, None)
        if reader := self._readers.pop(channel, None):
            reader.cancel()

    async def _receive(self, channel: str, mailbox: Mailbox) -> None:
        while True:
            try:
                message = await self._layer.receive(channel)
                self._take(message, self._groups[channel], mailbox)
            except (RedisError, OSError) as error:
                logger.warning("channel not received from", extra={"error": spelled(error)})
                await asyncio.sleep(PAUSE)

    @staticmethod
    def _take(message: dict[str, Any], groups: dict[str, Group], mailbox: Mailbox) -> None:
        kind = message["type"]
        if kind not in {"room.frame", "room.ephemeral"}:
            mailbox.message(message)
        elif (group := groups.get(message["room"])) is not None:
            (listener,) = group.listeners
            if kind == "room.frame":
                _publish(group, listener, message)
            else:
                listener.emit(Ephemeral(message["room"], message["text"].encode(), message["sender"]))

    async def enter(self, groups: Sequence[str], outlet: Outlet, channel: str) -> list[Listener]:
        entering = [Group(name, _kept) for name in groups]
        listeners = [Listener(group, outlet) for group in entering]
        try:
            for group, listener in zip(entering, listeners, strict=True):
                group.listeners[listener] = None
                # Before it is added, so that publications from here on are kept.
                self._groups[channel][group.room or ""] = group
                if leaving := self._leaving.get((group.name, channel)):
                    await asyncio.wait([leaving])  # else it would take the channel out again
                await self._layer.group_add(portable_group(group.name), channel)
            ends = await history.ends(groups)
        except BaseException:
            for listener in listeners:
                self.leave(listener, channel)
            raise
        for group, listener in zip(entering, listeners, strict=True):
            group.learn(ends[group.name], 0)
            listener.place(ends[group.name])
        return listeners

    def leave(self, listener: Listener, channel: str) -> None:
        listener.close()
        groups, room = self._groups.get(channel, {}), listener.group.room or ""
        if room in groups and listener in groups[room].listeners:
            del groups[room]
        name = (listener.group.name, channel)
        task = self._leaving[name] = asyncio.create_task(self._discard(*name), name="leave")
        task.add_done_callback(lambda done: self._leaving.get(name) is done and self._leaving.pop(name))

    async def _discard(self, group: str, channel: str) -> None:
        with contextlib.suppress(RedisError, OSError):
            # When it fails, the channel goes on getting messages, for which it has no listener.
            await self._layer.group_discard(portable_group(group), channel)

    async def missed(self, listener: Listener, since: str, opened_at: float = 0.0) -> int | None:
        return None

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        for group in groups:
            await self._layer.group_send(portable_group(group), ephemeral.message())

    async def dead(self, channels: Sequence[str]) -> set[str]:
        return set()

    def when_restored(self, review: Callable[[float], Awaitable[None]]) -> None:
        """These layers do not tell when they have lost messages."""


def _publish(group: Group, listener: Listener, message: dict[str, Any]) -> None:
    """Hand a publication to the listener, or keep it until the listener has started."""
    position = int(message["offset"])
    if position <= group.tail:
        return
    group.receive(Publication(position, group.tail, message.get("except") or "", message["text"].encode()))
    if group.waiting_bytes > WAITING_BYTES:
        group.clear()
    while group.waiting and listener.state is State.LIVE:
        listener.take(_next_batch(group))


def _next_batch(group: Group) -> PublicationBatch:
    batch = group.next_item()
    assert isinstance(batch, PublicationBatch)  # noqa: S101
    return batch


async def _kept(group: Group, position: int) -> PublicationBatch | None:
    """Read what came before the listener had started: there is no other history. It may have been too much to keep."""
    first = group.waiting[0] if group.waiting else None
    start = first.previous if isinstance(first, Publication) else group.tail
    if first is None or start != position:
        raise Unrecoverable(start)
    return _next_batch(group)
