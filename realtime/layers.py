"""The channel layer: Channels' specification on Redis Pub/Sub, and rooms that remember.

One SUBSCRIBE a group and process, one decode a message and process, none a connection. Beyond the specification
it knows *publications* (`realtime.roomlog`): each has a position, so that a process sees by itself when one is
missing and fetches it from the room's log.

A consumer's channel gets messages through `receive()` as everywhere; one that attached an `Outlet` is called
directly instead, and no queue, task or thread is woken for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, Protocol
from uuid import uuid4
from weakref import WeakKeyDictionary

import msgspec
from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer
from redis.exceptions import RedisError

from realtime import metrics, roomlog
from realtime.conf import conf
from realtime.pipe import Pipe
from realtime.redis import client, key
from realtime.roomlog import After, Publication, Unrecoverable
from realtime.rooms import room_of_group
from realtime.subscription import Message, Subscription

logger = logging.getLogger(__name__)

SLICE = 200
"""Deliveries between two looks at everything else that the loop has to do."""
REPAIR_SLICE = 100
JOIN_SECONDS = 5.0
"""Longest wait for Redis to confirm a subscription."""
OUTBOX = 20_000
"""Messages on their way to Redis; beyond it `ChannelFull`."""
COMPARE_BATCH = 500
START_SECONDS = 1.0


class Run:
    """Consecutive publications of one room, handed to many; what all of them need is made once."""

    __slots__ = ("_wire", "excluded", "publications")

    def __init__(self, publications: Sequence[Publication]) -> None:
        self.publications = publications
        self.excluded = {p.exclude for p in publications if p.exclude}
        """Connections that do not get all of it."""
        self._wire: bytes | None = None

    @property
    def wire(self) -> bytes:
        """All of it as WebSocket frames."""
        if self._wire is None:
            self._wire = b"".join(text_frame(p.frame) for p in self.publications)
        return self._wire


def text_frame(payload: bytes) -> bytes:
    """A whole, unmasked text frame (RFC 6455 §5.2), as a server sends it."""
    length = len(payload)
    if length < 126:
        return bytes((0x81, length)) + payload
    if length < 1 << 16:
        return b"\x81\x7e" + length.to_bytes(2, "big") + payload
    return b"\x81\x7f" + length.to_bytes(8, "big") + payload


class Outlet(Protocol):
    """Takes what a channel receives, at once."""

    def publications(self, room: str, run: Run) -> None:
        """Publications of a room this channel listens to, in order."""

    def message(self, message: dict[str, Any]) -> None:
        """Anything else."""


class _Queue:
    """A channel without outlet: what it receives waits for `receive()`."""

    __slots__ = ("capacity", "full", "messages", "waiter")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.messages: deque[dict[str, Any]] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.full = False

    def publications(self, room: str, run: Run) -> None:
        for publication in run.publications:
            self.message(
                {
                    "type": "room.frame",
                    "room": room,
                    "offset": str(publication.position),
                    "text": publication.frame.decode(),
                    "except": publication.exclude,
                }
            )

    def message(self, message: dict[str, Any]) -> None:
        if self.full:
            return
        if len(self.messages) >= self.capacity:
            # Loss is said: whoever reads this queue learns that it is not complete.
            self.full = True
            metrics.DROPPED.inc()
            message = {"type": "channel.overflow"}
        self.messages.append(message)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def get(self) -> dict[str, Any]:
        while not self.messages:
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        message = self.messages.popleft()
        self.full = self.full and bool(self.messages)
        return message


class _Group:
    """A group as this process sees it."""

    __slots__ = (
        "accepted",
        "channel",
        "listening",
        "lock",
        "members",
        "name",
        "newest",
        "position",
        "ready",
        "repair",
        "room",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.room = room_of_group(name)
        self.channel = roomlog.channel(name)
        self.members: dict[str, Outlet] = {}
        self.listening: dict[str, Outlet] = {}
        """Members that get publications."""
        self.position = 0
        """Everything up to here has been handed on; 0: not known yet."""
        self.accepted = 0
        """Everything up to here has been handed on or is about to be."""
        self.newest = 0
        """The newest position seen; above `position`, something is missing."""
        self.lock = asyncio.Lock()
        """Held while something is handed on: a large room takes several turns of the loop."""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.repair: asyncio.Task[None] | None = None


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
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Process] = WeakKeyDictionary()

    @property
    def _here(self) -> _Process:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            self._loops[loop] = _Process()
        return self._loops[loop]

    # --- Channels --------------------------------------------------------------------------------

    async def new_channel(self, prefix: str = "specific") -> str:
        """A channel of this process. Costs nothing until something is sent to it."""
        here = self._here
        await here.start()
        name = f"{prefix}.{here.id}!{uuid4().hex}"
        here.channels[name] = _Queue(self.get_capacity(name))
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
            if isinstance(outlet, _Queue) and len(outlet.messages) >= outlet.capacity:
                raise ChannelFull
            if outlet is not None:
                outlet.message(_copy(message))
            return
        process = channel.partition("!")[0].rpartition(".")[2]
        await here.publish(_process_channel(process), b"S" + msgspec.msgpack.encode([channel, message]))

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
            queue = here.channels[channel] = _Queue(self.get_capacity(channel))
        if not isinstance(queue, _Queue):
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
        await self._here.publish(roomlog.channel(group), b"M" + msgspec.msgpack.encode(message))

    async def flush(self) -> None:
        """Forget every channel and group of this process."""
        loop = asyncio.get_running_loop()
        if here := self._loops.pop(loop, None):
            await here.close()

    # --- Rooms: beyond the specification ------------------------------------------------------------

    def listen(self, group: str, channel: str) -> int:
        """From here on the channel gets the group's publications: all after the position that is returned."""
        return self._here.listen(group, channel)

    def position(self, group: str) -> int:
        """Where this process stands in the group's room."""
        return self._here.groups[group].position

    async def catch_up(self, group: str) -> None:
        """Bring this process to the end of the group's log. Raises `redis.RedisError`."""
        await self._here.repair(self._here.groups[group])

    async def read(self, group: str, position: int, most: int) -> tuple[After, Run]:
        """`roomlog.after`, once for all who ask for the same at the same time, as after an outage they do."""
        return await self._here.read(group, position, most)

    @property
    def groups(self) -> set[str]:
        """The groups with members in this process."""
        return set(self._here.groups)

    async def emit(self, groups: Iterable[str], message: dict[str, Any]) -> None:
        """`group_send` to several groups, whose local members do not wait for Redis. Raises `redis.RedisError`."""
        here = self._here
        payload = b"E" + here.id.encode() + msgspec.msgpack.encode(message)
        published = []
        for group in groups:
            if found := here.groups.get(group):
                await here.hand_out(found, message)
            published.append(here.begin_publish(roomlog.channel(group), payload))
        for done in published:
            await done


def _require_message(message: object) -> None:
    if not isinstance(message, dict):
        raise TypeError(f"a message must be a dict, got {type(message).__name__}")


async def _pop(queue: str) -> Any:
    return await client().blpop([queue], timeout=1)


async def _put_back(queue: str, popping: Awaitable[Any]) -> None:
    """Redis may have handed out a message that nobody waits for any more."""
    if found := await popping:
        await client().lpush(queue, found[1])


def _copy(message: dict[str, Any]) -> dict[str, Any]:
    """A copy that its receiver may change."""
    return {
        name: value if isinstance(value, _IMMUTABLE) else deepcopy(value) for name, value in message.items()
    }


_IMMUTABLE = (str, bytes, int, float, type(None))


def _process_channel(process: str) -> bytes:
    return key("process", process).encode()


class _Process:
    """The layer in one event loop."""

    def __init__(self) -> None:
        self.id = uuid4().hex
        self._origin = self.id.encode()
        self.channels: dict[str, Outlet] = {}
        self.groups: dict[str, _Group] = {}
        self._by_channel: dict[bytes, _Group] = {}
        self._memberships: dict[str, set[str]] = {}
        self._own = _process_channel(self.id)
        self._subscription = Subscription(self._on_messages, self._on_restored)
        self._pipe = Pipe()
        self._opening: list[_Group] = []
        self._watcher: asyncio.Task[None] | None = None
        self._reachable: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reading: dict[tuple[str, int, int], asyncio.Task[tuple[After, Run]]] = {}
        self._canary_at = 0.0

    def owns(self, channel: str) -> bool:
        """Whether the channel is one of this process."""
        return f".{self.id}!" in channel

    async def start(self) -> None:
        """Subscribe to the process's own channel, and watch that the subscription delivers.

        Waits until other processes can send to channels of this one, but not long for a Redis that is away.
        """
        if self._reachable is None:
            self._watcher = asyncio.create_task(self._watch(), name="canary")
            self._reachable = self.spawn(self._subscription.subscribe([self._own]))
        if not self._reachable.done():
            await asyncio.wait([self._reachable], timeout=START_SECONDS)

    async def close(self) -> None:
        """Give everything back."""
        for task in (*self._tasks, *self._reading.values(), self._watcher):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._subscription.close()
        self._pipe.close()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something on the side; it ends with the layer."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def forget(self, channel: str) -> None:
        """Take a channel out of everything."""
        self.channels.pop(channel, None)
        for group in self._memberships.pop(channel, ()):
            self._remove(group, channel)

    # --- Membership --------------------------------------------------------------------------------

    async def join(self, name: str, channel: str) -> None:
        group = self.begin_join(name, channel)
        await self.start()
        try:
            if self._subscription.is_lost and not group.ready.done():
                raise RedisError("the subscription is lost; trying again")
            async with asyncio.timeout(JOIN_SECONDS):
                await asyncio.shield(group.ready)
        except BaseException:
            self.leave(name, channel)
            raise

    def begin_join(self, name: str, channel: str) -> _Group:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = _Group(name)
            self._by_channel[group.channel] = group
            if not self._opening:
                asyncio.get_running_loop().call_soon(lambda: self.spawn(self._open()))
            self._opening.append(group)
        group.members[channel] = self.channels[channel]
        self._memberships.setdefault(channel, set()).add(name)
        return group

    def leave(self, name: str, channel: str) -> None:
        self._memberships.get(channel, set()).discard(name)
        self._remove(name, channel)

    def _remove(self, name: str, channel: str) -> None:
        if (group := self.groups.get(name)) is None:
            return
        group.members.pop(channel, None)
        group.listening.pop(channel, None)
        if not group.members:
            self._drop(group)

    def _drop(self, group: _Group) -> None:
        if self.groups.get(group.name) is not group:
            return  # left, and entered again by somebody else
        del self.groups[group.name]
        self._by_channel.pop(group.channel, None)
        self._subscription.unsubscribe(group.channel)
        if group.repair is not None:
            group.repair.cancel()

    def listen(self, name: str, channel: str) -> int:
        group = self.groups[name]
        group.listening[channel] = self.channels[channel]
        return group.position

    async def _open(self) -> None:
        """Subscribe to the groups that were opened in one turn of the loop, then learn where their rooms stand."""
        opening, self._opening = self._opening, []
        groups = []
        for group in opening:
            if self.groups.get(group.name) is group:
                groups.append(group)
            else:
                group.ready.set_result(None)  # left again already
        try:
            await self._subscription.subscribe([group.channel for group in groups])
            rooms = [group.name for group in groups if group.room is not None]
            ends = await roomlog.ends(rooms) if rooms else {}
        except (RedisError, OSError) as error:
            for group in groups:
                if not group.ready.done():
                    group.ready.set_exception(
                        error if isinstance(error, RedisError) else RedisError(repr(error))
                    )
                    group.ready.exception()  # it may be that nobody waits any more
                self._drop(group)
            return
        for group in groups:
            group.position = group.accepted = ends.get(group.name, 0)
            if not group.ready.done():
                group.ready.set_result(None)
            if group.newest > group.position:
                self._mend(group)

    # --- Publishing --------------------------------------------------------------------------------

    async def publish(self, channel: bytes, payload: bytes) -> None:
        """PUBLISH, together with whatever else is published in the same moment."""
        await self.begin_publish(channel, payload)

    def begin_publish(self, channel: bytes, payload: bytes) -> asyncio.Future[Any]:
        if len(self._pipe) >= OUTBOX:
            raise ChannelFull
        return self._pipe.send(b"PUBLISH", channel, payload)

    # --- Receiving ---------------------------------------------------------------------------------

    def _on_messages(self, messages: Sequence[Message]) -> Awaitable[None] | None:
        """Hand out what has arrived. What would take the loop too long is left to be awaited."""
        steps = self._steps(messages)
        for slow in steps:
            return self._finish(slow, steps)
        return None

    async def _finish(self, first: Awaitable[None], steps: Iterable[Awaitable[None]]) -> None:
        await first
        for slow in steps:
            await slow

    def _steps(self, messages: Sequence[Message]) -> Iterator[Awaitable[None]]:
        """Consecutive publications of a room are handed on together, so that they can be joined."""
        run: list[Publication] = []
        running: _Group | None = None
        for channel, payload in messages:
            group = self._by_channel.get(channel)
            if group is not running and run and running is not None:
                yield from self._pass(running, run)
                run = []
            running = group
            try:
                if group is None:
                    if channel == self._own:
                        self._on_own(payload)
                elif payload.startswith(b"F"):
                    publication = roomlog.unpack(payload)
                    if self._is_next(group, publication):
                        run.append(publication)
                elif message := self._message(payload):
                    if run:
                        yield from self._pass(group, run)
                        run = []
                    yield from self._pass_message(group, message)
            except (ValueError, IndexError, msgspec.DecodeError):
                logger.warning("message not understood", extra={"channel": channel.decode(errors="replace")})
        if run and running is not None:
            yield from self._pass(running, run)

    def _pass(self, group: _Group, publications: Sequence[Publication]) -> Iterator[Awaitable[None]]:
        if len(group.listening) > SLICE or group.lock.locked():
            yield self._hand_on(group, publications)
        elif run := self._new(group, publications):
            for channel, outlet in tuple(group.listening.items()):
                _deliver(channel, outlet.publications, group.room or "", run)

    def _pass_message(self, group: _Group, message: dict[str, Any]) -> Iterator[Awaitable[None]]:
        if len(group.members) > SLICE:
            yield self.hand_out(group, message)
        else:
            for channel, outlet in tuple(group.members.items()):
                _deliver(channel, outlet.message, _copy(message))

    def _message(self, payload: bytes) -> dict[str, Any] | None:
        """A message that is not a publication; None for our own, whose members had it at once."""
        if payload.startswith(b"M"):
            return _decode(payload[1:])
        if payload.startswith(b"E") and not payload.startswith(self._origin, 1):
            return _decode(payload[33:])
        return None

    def _is_next(self, group: _Group, publication: Publication) -> bool:
        if publication.position <= group.accepted:
            return False
        group.newest = max(group.newest, publication.position)
        if publication.previous == group.accepted:
            group.accepted = publication.position
            return True
        if group.position:
            self._mend(group)
        return False

    def _new(self, group: _Group, publications: Sequence[Publication]) -> Run | None:
        """What of these has not been handed on; whoever starts to listen from here on starts behind it."""
        publications = [each for each in publications if each.position > group.position]
        if not publications:
            return None
        group.position = publications[-1].position
        group.accepted = max(group.accepted, group.position)
        metrics.DELIVERIES.inc(len(publications) * len(group.listening))
        return Run(publications)

    async def _hand_on(self, group: _Group, publications: Sequence[Publication]) -> None:
        async with group.lock:
            if run := self._new(group, publications):
                room, listening = group.room or "", group.listening
                async for channel, outlet in _in_slices(listening):
                    _deliver(channel, outlet.publications, room, run)

    async def hand_out(self, group: _Group, message: dict[str, Any]) -> None:
        """A message to every member here, each with a copy of its own."""
        async for channel, outlet in _in_slices(group.members):
            _deliver(channel, outlet.message, _copy(message))

    def _on_own(self, payload: bytes) -> None:
        if payload.startswith(b"S"):
            channel, message = msgspec.msgpack.decode(payload[1:])
            if outlet := self.channels.get(channel):
                outlet.message(message)
        elif payload.startswith(b"C"):
            self._canary_at = asyncio.get_running_loop().time()

    async def read(self, group: str, position: int, most: int) -> tuple[After, Run]:
        key = (group, position, most)
        if (reading := self._reading.get(key)) is None:
            reading = self._reading[key] = asyncio.create_task(_read(*key), name="read")
            reading.add_done_callback(lambda _: self._reading.pop(key, None))
        return await asyncio.shield(reading)

    # --- Missing publications ------------------------------------------------------------------------

    def _mend(self, group: _Group) -> None:
        if group.repair is None or group.repair.done():
            group.repair = asyncio.create_task(self.repair(group), name="repair")

    async def repair(self, group: _Group) -> None:
        """Fetch from the log what did not arrive. What cannot be fetched is said: `room.gap`."""
        while self.groups.get(group.name) is group:
            position = group.position
            try:
                found = await self._after(group)
            except (RedisError, OSError) as error:
                logger.warning("room not repaired", extra={"room": group.room, "error": repr(error)})
                await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311
                continue
            if isinstance(found, int):
                async with group.lock:
                    if group.position != position:
                        continue  # somebody else repaired it meanwhile: this is no longer what is missing
                    await self._say_gap(group, found)
                return
            await self._hand_on(group, found.publications)
            if not found.publications:
                group.newest = group.position
                return

    async def _after(self, group: _Group) -> roomlog.After | int:
        """What the group has not got yet; the room's end when that cannot be had."""
        try:
            return await roomlog.after(group.name, group.position, REPAIR_SLICE)
        except Unrecoverable as lost:
            return lost.end or (await roomlog.ends([group.name]))[group.name]

    async def _say_gap(self, group: _Group, end: int) -> None:
        group.position = group.accepted = group.newest = end
        metrics.GAPS.inc()
        gap = {"type": "room.gap", "room": group.room, "offset": str(end), "reason": "lost"}
        await self.hand_out(group, gap)

    def _on_restored(self) -> None:
        """The subscription is back: whatever was published meanwhile did not reach us."""
        logger.info("subscription restored", extra={"groups": len(self.groups)})
        self.spawn(self._compare())

    async def _compare(self) -> None:
        groups = [group for group in self.groups.values() if group.room is not None and group.ready.done()]
        for start in range(0, len(groups), COMPARE_BATCH):
            part = groups[start : start + COMPARE_BATCH]
            while True:
                try:
                    ends = await roomlog.ends([group.name for group in part])
                    break
                except (RedisError, OSError):
                    await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311
            for group in part:
                if ends[group.name] != group.position:
                    self._mend(group)

    # --- Liveness ------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Send ourselves a message through Redis whenever it was quiet; a connection that does not bring it is dead."""
        interval = max(min(conf().node_lease / 4, 5.0), 0.2)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval)
            if loop.time() - self._subscription.heard_at < interval or not self._subscription.is_connected:
                continue
            asked_at = loop.time()
            try:
                async with asyncio.timeout(interval * 2):
                    await self.publish(self._own, b"C")
            except (RedisError, OSError, ChannelFull):
                continue  # Redis does not take it: nothing is learnt about the subscription
            await asyncio.sleep(interval)
            if self._canary_at < asked_at and self._subscription.heard_at < asked_at:
                logger.warning("subscription does not deliver")
                self._subscription.reconnect()


async def _read(group: str, position: int, most: int) -> tuple[After, Run]:
    found = await roomlog.after(group, position, most)
    return found, Run(found.publications)


async def _in_slices(members: dict[str, Outlet]) -> AsyncIterator[tuple[str, Outlet]]:
    """Who is a member now and stays one; a large room in slices, so that pings and handshakes get their turn."""
    for count, (channel, outlet) in enumerate(tuple(members.items()), start=1):
        if channel in members:
            yield channel, outlet
        if count % SLICE == 0:
            await asyncio.sleep(0)


def _deliver(channel: str, deliver: Callable[..., None], *what: Any) -> None:
    """One outlet's trouble is not another's."""
    try:
        deliver(*what)
    except Exception:
        logger.exception("outlet failed", extra={"channel": channel})


def _decode(payload: bytes) -> dict[str, Any]:
    message: dict[str, Any] = msgspec.msgpack.decode(payload)
    return message
