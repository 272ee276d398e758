"""The channel layer: Channels' specification on Redis Pub/Sub, and rooms that remember.

One SUBSCRIBE a group and process, one decode a message and process, none a connection. Beyond the specification
it knows *publications* (`realtime.roomlog`): each has a position, so that a process sees by itself when one is
missing and fetches it from the room's log.

A consumer's channel gets messages through `receive()` as everywhere; one that attached an `Outlet` is called
directly instead, and no queue, task or thread is woken for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer

from realtime import roomlog
from realtime.delivery import Ephemeral, Outlet, Queue, Run, copy
from realtime.process import Process, process_channel
from realtime.redis import client, key
from realtime.roomlog import After


class RoomChannelLayer(BaseChannelLayer):
    """`CHANNEL_LAYERS = {"default": {"BACKEND": "realtime.layers.RoomChannelLayer"}}`.

    Redis and prefix are those of `REALTIME`. `capacity` is the number of messages that may wait for a channel
    without outlet, `expiry` the seconds that a message to a normal channel (no `!`) waits for a receiver.
    """

    extensions = ["groups", "flush", "rooms"]

    def __init__(
        self,
        expiry: int = 60,
        capacity: int = 1000,
        channel_capacity: dict[Any, int] | None = None,
    ) -> None:
        compiled: Any = self.compile_capacities(channel_capacity or {})
        super().__init__(expiry=expiry, capacity=capacity, channel_capacity=compiled)
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Process] = WeakKeyDictionary()
        self._recent: Any = (None, None)
        """The loop that asked last: in a server there is only one."""

    @property
    def _here(self) -> Process:
        loop = asyncio.get_running_loop()
        if loop is not self._recent[0]:
            if loop not in self._loops:
                self._loops[loop] = Process()
            self._recent = loop, self._loops[loop]
        here: Process = self._recent[1]
        return here

    # --- Channels --------------------------------------------------------------------------------

    async def new_channel(self, prefix: str = "specific") -> str:
        """A channel of this process. Costs nothing until something is sent to it."""
        here = self._here
        await here.start()
        name = f"{prefix}.{here.id}!{next(here.numbers)}"
        here.channels[name] = Queue(self.get_capacity(name))
        return name

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send to one channel. Raises `ChannelFull`, or `redis.RedisError`."""
        self.require_valid_channel_name(channel)
        _require_message(message)
        if "!" not in channel:
            await self._send_normal(channel, message)
            return
        here = self._here
        if here.owns(channel):
            outlet = here.channels.get(channel)
            if isinstance(outlet, Queue) and len(outlet.messages) >= outlet.capacity:
                raise ChannelFull
            if outlet is not None:
                outlet.message(copy(message))
            return
        process = channel.partition("!")[0].rpartition(".")[2]
        await here.publish(process_channel(process), b"S" + msgspec.msgpack.encode([channel, message]))

    async def _send_normal(self, channel: str, message: dict[str, Any]) -> None:
        queue = key("channel", channel)
        if await client().llen(queue) >= self.get_capacity(channel):
            raise ChannelFull
        async with client().pipeline(transaction=False) as pipeline:
            pipeline.rpush(queue, msgspec.msgpack.encode(message))
            pipeline.expire(queue, self.expiry)
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
                raise RuntimeError(f"{channel} belongs to another process")
            queue = here.channels[channel] = Queue(self.get_capacity(channel))
        if not isinstance(queue, Queue):
            raise RuntimeError(f"{channel} has an outlet")
        try:
            await here.start()
            return await queue.get()
        except asyncio.CancelledError:
            # Channels has no delete_channel(): a consumer that goes away cancels its receive().
            here.forget(channel)
            raise

    async def _receive_normal(self, channel: str) -> dict[str, Any]:
        queue = key("channel", channel)
        while True:
            popping = self._here.spawn(_pop(queue))
            try:
                found = await asyncio.shield(popping)
            except asyncio.CancelledError:
                if not popping.cancelled():
                    self._here.spawn(_put_back(queue, popping))
                raise
            if found:
                message: dict[str, Any] = msgspec.msgpack.decode(found[1])
                return message

    def attach(self, channel: str, outlet: Outlet) -> None:
        """From now on the channel's messages go to the outlet."""
        self._here.channels[channel] = outlet

    def detach(self, channel: str) -> None:
        """The channel is over: it leaves its groups and gets nothing more."""
        self._here.forget(channel)

    # --- Groups ----------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel of this process; returns once Redis has confirmed. Raises `redis.RedisError`."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        here = self._here
        if channel not in here.channels:
            raise RuntimeError(f"group_add() wants a channel of this process, got {channel!r}")
        await here.join(group, channel)

    def begin_group_add(self, group: str, channel: str) -> None:
        """Let several `group_add` share one SUBSCRIBE: begin all of them, then wait for each."""
        self._here.begin_join(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Take a channel out, if it is in."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        self._here.leave(group, channel)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send to every channel of the group. Raises `redis.RedisError`."""
        self.require_valid_group_name(group)
        _require_message(message)
        await self._here.publish(*group_message(group, message))

    async def flush(self) -> None:
        """Forget every channel and group of this process."""
        self._recent = (None, None)
        if here := self._loops.pop(asyncio.get_running_loop(), None):
            await here.close()

    # --- Rooms: beyond the specification ------------------------------------------------------------

    def listen(self, group: str, channel: str) -> int:
        """From here on the channel gets the group's publications: all after the position that is returned."""
        return self._here.listen(group, channel)

    def mute(self, group: str, channel: str) -> None:
        """No more publications to the channel, which stays in the group. Nothing happens when it is not in it."""
        self._here.mute(group, channel)

    def position(self, group: str) -> int:
        """Where this process stands in the group's room."""
        return self._here.groups[group].position

    async def catch_up(self, group: str) -> None:
        """Bring this process to the end of the group's log. Raises `redis.RedisError`."""
        await self._here.repair(self._here.groups[group])

    async def read(self, group: str, position: int, most: int) -> tuple[After, Run]:
        """`roomlog.after`, once for all who ask for the same at the same time, as after an outage they do."""
        return await self._here.read(group, position, most)

    async def listeners(self, channels: Sequence[bytes]) -> list[int]:
        """How many processes have subscribed to each of these Pub/Sub channels. Raises `redis.RedisError`."""
        return await asyncio.gather(*map(self._here.listeners, channels))

    def when_restored(self, tell: Callable[[], None]) -> None:
        """Call `tell` whenever messages to groups of this process may have been lost, and come again from now on."""
        self._here.on_restored.add(tell)

    @property
    def groups(self) -> set[str]:
        """The groups with members in this process."""
        return set(self._here.groups)

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        """Say something that is stored nowhere. Nobody waits for Redis: it may be lost on its way there.

        Its sender's name has 32 characters at most. Raises `redis.RedisError` when it is known that only the members
        in this process got it.
        """
        await self._here.emit(groups, ephemeral)


def group_message(group: str, message: dict[str, Any]) -> tuple[bytes, bytes]:
    """Channel and payload of what `group_send` publishes, for who has no event loop."""
    return roomlog.channel(group), b"M" + msgspec.msgpack.encode(message)


def _require_message(message: object) -> None:
    if not isinstance(message, dict):
        raise TypeError(f"a message must be a dict, got {type(message).__name__}")


async def _pop(queue: str) -> Any:
    return await client().blpop([queue], timeout=1)


async def _put_back(queue: str, popping: Awaitable[Any]) -> None:
    """Redis may have handed out a message that nobody waits for any more."""
    if found := await popping:
        await client().lpush(queue, found[1])
