"""The channel layer: Channels' specification on Redis Pub/Sub, and rooms that remember.

There is one SUBSCRIBE per group and instance, none per connection. Beyond the specification the layer knows
*publications* (`realtime.layers.history`): each has a position, so that a missing one is noticed and read from the
room's history.

A consumer's channel gets messages through `receive()` as everywhere; a channel with an `Outlet` is called directly
instead, and no queue, task or thread is woken for it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from copy import deepcopy
from typing import Any

import msgspec
from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer

from realtime.layers import history
from realtime.layers.listener import Listener
from realtime.layers.liveness import instance_channel
from realtime.layers.loop_layer import LoopLayer
from realtime.layers.outlets import Ephemeral, Mailbox, Outlet, Queue
from realtime.protocol.publication import Draft, parse_position
from realtime.redis.client import client, key, publish_sync
from realtime.redis.pipelining import Pipes
from realtime.tasks.per_loop import PerLoop, is_short_lived_loop

EXPIRES = "__expires__"
"""Part of a message that waits in Redis: when (seconds since the epoch) it is not delivered any more."""


class RoomChannelLayer(BaseChannelLayer):
    """`CHANNEL_LAYERS = {"default": {"BACKEND": "realtime.layers.RoomChannelLayer"}}`.

    Redis and prefix are those of `REALTIME`. `expiry` is the number of seconds after which a message that was not
    received is dropped. `capacity` is the number of messages that may wait for a channel: beyond it `send` raises
    `ChannelFull`, and of what `group_send` brings the channel gets nothing more until it has read all that waits,
    which then ends with a message of the type `channel.overflow`. A channel with an outlet has no capacity.
    """

    extensions = ["groups", "flush"]
    emit_waits = False

    def __init__(
        self,
        expiry: float = 60,
        capacity: int = 1000,
        channel_capacity: dict[Any, int] | None = None,
    ) -> None:
        _require("expiry", expiry, int, float)
        for name, number in {"capacity": capacity, **(channel_capacity or {})}.items():
            _require(name, number, int)
        compiled: Any = self.compile_capacities(channel_capacity or {})
        seconds: Any = expiry  # Channels says int
        super().__init__(expiry=seconds, capacity=capacity, channel_capacity=compiled)
        self._loops = PerLoop(LoopLayer, LoopLayer.abort)

    @property
    def _here(self) -> LoopLayer:
        return self._loops()

    # --- Channels --------------------------------------------------------------------------------

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return a new channel of this instance. It costs nothing until something is sent to it."""
        here = self._here
        await here.liveness.start()
        name = f"{prefix}.{here.id}!{next(here.numbers)}"
        here.channels[name] = Queue(self.get_capacity(name), self.expiry)
        return name

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send to one channel. Raises `ChannelFull`, or `redis.RedisError`."""
        self.require_valid_channel_name(channel)
        _require_message(message)
        if "!" not in channel:
            await self._send_normal(channel, message)
            return
        here = self._here
        if not here.owns(channel):
            payload = b"S" + msgspec.msgpack.encode([channel, message])
            await self._publish(instance_channel(_instance_of(channel)), payload)
            return
        mailbox = here.channels.get(channel)
        if isinstance(mailbox, Queue) and mailbox.is_full:
            raise ChannelFull
        if mailbox is not None:
            mailbox.message(deepcopy(message))

    async def _send_normal(self, channel: str, message: dict[str, Any]) -> None:
        queue = key("channel", channel)
        if await client().llen(queue) >= self.get_capacity(channel):
            raise ChannelFull
        async with client().pipeline(transaction=False) as pipeline:
            pipeline.rpush(queue, msgspec.msgpack.encode({**message, EXPIRES: time.time() + self.expiry}))
            pipeline.expire(queue, math.ceil(self.expiry))
            await pipeline.execute()

    async def receive(self, channel: str) -> dict[str, Any]:
        """The next message of a channel; waits for it."""
        self.require_valid_channel_name(channel)
        if "!" not in channel:
            return await self._receive_normal(channel)
        here = self._here
        queue = here.channels.get(channel)
        if queue is None:
            if not here.owns(channel):
                raise RuntimeError(
                    f"receive() takes a channel of this instance, got {channel!r} of another one"
                )
            queue = here.channels[channel] = Queue(self.get_capacity(channel), self.expiry)
        if not isinstance(queue, Queue):
            raise RuntimeError(f"receive() takes a channel without an outlet, got {channel!r}, which has one")
        queue.receivers += 1
        try:
            await here.liveness.start()
            return await queue.get()
        except asyncio.CancelledError:
            # Channels has no delete_channel(): a consumer that goes away cancels its receive().
            if queue.receivers == 1:
                here.forget(channel)
            raise
        finally:
            queue.receivers -= 1

    async def _receive_normal(self, channel: str) -> dict[str, Any]:
        queue = key("channel", channel)
        while True:
            popping = self._here.tasks.spawn(_pop(queue))
            try:
                found = await asyncio.shield(popping)
            except asyncio.CancelledError:
                if not popping.cancelled():
                    self._here.tasks.spawn(_put_back(queue, popping))
                raise
            if found:
                message: dict[str, Any] = msgspec.msgpack.decode(found[1])
                if message.pop(EXPIRES, math.inf) > time.time():
                    return message

    # --- Groups ----------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel of this instance; returns once Redis has confirmed.

        Raises `RuntimeError` for a channel that was not made in this instance and event loop: only the instance that
        holds a channel can receive for it. Raises `redis.RedisError`.
        """
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        here = self._here
        if channel not in here.channels:
            raise RuntimeError(f"group_add() takes a channel of this instance, got {channel!r}")
        await here.join(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Take a channel out, if it is in."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        self._here.leave(group, channel)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send to every channel of the group. Raises `redis.RedisError`."""
        self.require_valid_group_name(group)
        _require_message(message)
        await self._publish(*history.group_message(group, message))

    async def _publish(self, channel: bytes, payload: bytes) -> None:
        if is_short_lived_loop():
            # Called from synchronous code, whose thread waits anyway: all such calls share their connections.
            publish_sync(channel, payload)
        else:
            await self._here.publish(channel, payload)

    async def flush(self) -> None:
        """Forget every channel and group of this event loop."""
        if here := self._loops.pop():
            await here.close()

    # --- Rooms: `realtime.layers.interface.RoomLayer` -----------------------------------------------------

    def prepare(
        self, pipes: Pipes, entries: Sequence[Draft], **options: Any
    ) -> Callable[[], history.Appending]:
        """Append entries to their rooms' histories and publish them (`realtime.layers.history.prepare_append`)."""
        return history.prepare_append(pipes, entries, **options)

    async def attach(self, mailbox: Mailbox) -> str:
        """Return a new channel whose messages are handed to `mailbox` at once."""
        name = await self.new_channel()
        self._here.channels[name] = mailbox
        return name

    def detach(self, channel: str) -> None:
        """End a channel: it leaves its groups and gets nothing more."""
        self._here.forget(channel)

    async def enter(self, groups: Sequence[str], outlet: Outlet, channel: str) -> list[Listener]:
        """Enter rooms; returns a paused listener for each, at the room's end. Raises `redis.RedisError`."""
        return await self._here.enter(groups, outlet)

    def leave(self, listener: Listener, channel: str) -> None:
        """Leave a room: nothing of it is written any more."""
        self._here.exit(listener)

    async def missed(self, listener: Listener, since: str, opened_at: float = 0.0) -> int | None:
        """Count the publications after an offset that its connection will get; None when not all of them are known.

        No publication from before the connection was opened (Redis' clock, in seconds) leaves it out.

        The listener then stands at that offset, or at the room's end. Raises `redis.RedisError`.
        """
        if (position := parse_position(since)) is None:
            listener.place(listener.group.tail)
            return None
        return await self._here.missed(listener, position, opened_at)

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        """Send an event that is stored nowhere, without waiting for Redis: it may be lost on the way.

        The sender's connection id has 32 characters at most. Raises `redis.RedisError` when only the members in this
        instance have got it.
        """
        await self._here.emit(groups, ephemeral)

    async def dead(self, channels: Sequence[str]) -> set[str]:
        """Return those channels that have ended, as far as that is known, or whose instance has.

        Of its own channels an instance knows it; its subscription may be lost for a moment. Raises `redis.RedisError`.
        """
        here = self._here
        names = {each: instance_channel(_instance_of(each)) for each in channels if not here.owns(each)}
        processes = sorted(set(names.values()))
        listeners = await asyncio.gather(*map(here.pipes.listeners, processes))
        gone = {name for name, number in zip(processes, listeners, strict=True) if not number}
        ended = {each for each in channels if here.owns(each) and each not in here.channels}
        return ended | {each for each, name in names.items() if name in gone}

    def when_restored(self, review: Callable[[float], Awaitable[None]]) -> None:
        """Await `review(seconds)` after messages to groups may have been lost for that time, before serving rooms."""
        self._here.repair.reviews.append(review)

    @property
    def groups(self) -> set[str]:
        """The groups with members in this event loop."""
        return {group.name for group in self._here.groups.values()}


def _instance_of(channel: str) -> str:
    return channel.partition("!")[0].rpartition(".")[2]


def _require(option: object, value: object, *types: type) -> None:
    if isinstance(value, bool) or not isinstance(value, types) or not 0 < value < math.inf:  # type: ignore[operator]
        expected = "positive whole number" if types == (int,) else "positive number of seconds"
        raise ValueError(f"{option}: expected a {expected}, got {value!r}")


def _require_message(message: object) -> None:
    if not isinstance(message, dict):
        raise TypeError(f"a message must be a dict, got {type(message).__name__}")


async def _pop(queue: str) -> Any:
    return await client().blpop([queue], timeout=1)


async def _put_back(queue: str, popping: Awaitable[Any]) -> None:
    """Give back a message that Redis handed out after its receiver was cancelled."""
    if found := await popping:
        await client().lpush(queue, found[1])
