"""The channel layer in one event loop: who of this process is in which group, and what reaches them from Redis.

Publications (`realtime.roomlog`) have positions, so that a missing one is noticed here and fetched from the room's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from itertools import count
from time import perf_counter, time_ns
from typing import Any
from uuid import uuid4

import msgspec
from channels.exceptions import ChannelFull
from redis.exceptions import RedisError

from realtime import metrics, roomlog, tracing
from realtime.delivery import Ephemeral, Outlet, Run, copy
from realtime.groups import SLICE, Group, to_all, to_each, to_members
from realtime.logs import spelled
from realtime.metrics import tally
from realtime.pipe import Pipes
from realtime.redis import key
from realtime.roomlog import After, Publication, Unrecoverable
from realtime.rooms import room_of_group
from realtime.subscription import Message
from realtime.subscriptions import Subscriptions, proof_interval

logger = logging.getLogger(__name__)

REPAIR_SLICE = 100
JOIN_SECONDS = 5.0
"""Longest wait for Redis to confirm a subscription."""
OUTBOX = 20_000
"""Messages on their way to Redis; beyond it `ChannelFull`."""
COMPARE_BATCH = 500
START_SECONDS = 1.0


def process_channel(process: str) -> bytes:
    return key("process", process).encode()


class Process:
    """The layer in one event loop."""

    def __init__(self) -> None:
        self.id = uuid4().hex
        self._origin = self.id.encode()
        self.numbers = count()
        """For the names of channels."""
        self.channels: dict[str, Outlet] = {}
        self.groups: dict[str, Group] = {}
        self._by_channel: dict[bytes, Group] = {}
        self._memberships: dict[str, set[str]] = {}
        self._own = process_channel(self.id)
        self._subscriptions = Subscriptions(self._on_messages, self._on_restored)
        self._pipes = Pipes()
        self._opening: list[Group] = []
        self._watcher: asyncio.Task[None] | None = None
        self._reachable: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reading: dict[tuple[str, int, int], asyncio.Task[tuple[After, Run]]] = {}
        self._canary_at = 0.0
        self._everybody = key("processes").encode()
        self.is_alone = False
        """No other process has this layer, so that whoever is in a group is here."""
        self._has_met = False
        """Somebody introduced themselves since we last looked."""
        self.on_restored: set[Callable[[], None]] = set()
        """Called when messages to groups may have been lost; of rooms this process sees to that itself."""

    def owns(self, channel: str) -> bool:
        """Whether the channel is one of this process."""
        return f".{self.id}!" in channel

    async def start(self) -> None:
        """Subscribe to the process's own channel, and watch that the subscription delivers.

        Waits until other processes can send to channels of this one, but not long for a Redis that is away.
        """
        if self._reachable is None:
            self._watcher = asyncio.create_task(self._watch(), name="canary")
            self._reachable = self.spawn(self._introduce())
        if not self._reachable.done():
            await asyncio.wait([self._reachable], timeout=START_SECONDS)

    async def _introduce(self) -> None:
        """Become reachable, and tell every other process that it is not alone (any more)."""
        await self._subscriptions.subscribe([self._own, self._everybody])
        with contextlib.suppress(RedisError, OSError):
            await self.publish(self._everybody, self._origin)
            await self._look_around()

    async def _look_around(self) -> None:
        """See who else is there; who comes from now on introduces itself."""
        self._has_met = False
        self.is_alone = await self.listeners(self._everybody) == 1 and not self._has_met

    async def listeners(self, channel: bytes) -> int:
        """How many processes have subscribed to a channel. Raises `redis.RedisError`."""
        return await self._pipes.listeners(channel)

    def _meet(self) -> None:
        self._has_met = True
        self.is_alone = False

    async def close(self) -> None:
        """Give everything back."""
        for task in (*self._tasks, *self._reading.values(), self._watcher):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._subscriptions.close()
        self._pipes.close()

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
            if self._subscriptions.serving(group.channel).is_lost and not group.ready.done():
                raise RedisError("the subscription is lost; trying again")
            async with asyncio.timeout(JOIN_SECONDS):
                await asyncio.shield(group.ready)
        except BaseException:
            self.leave(name, channel)
            raise

    def begin_join(self, name: str, channel: str) -> Group:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(name)
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

    def _drop(self, group: Group) -> None:
        if self.groups.get(group.name) is not group:
            return  # left, and entered again by somebody else
        del self.groups[group.name]
        self._by_channel.pop(group.channel, None)
        self._subscriptions.unsubscribe(group.channel)
        if group.repair is not None:
            group.repair.cancel()

    def listen(self, name: str, channel: str) -> int:
        group = self.groups[name]
        group.listening[channel] = self.channels[channel]
        return group.position

    def mute(self, name: str, channel: str) -> None:
        if group := self.groups.get(name):
            group.listening.pop(channel, None)

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
            await self._subscriptions.subscribe([group.channel for group in groups])
            rooms = [group.name for group in groups if group.room is not None]
            ends = await roomlog.ends(rooms, self._pipes) if rooms else {}
        except (RedisError, OSError) as error:
            for group in groups:
                if not group.ready.done():
                    group.ready.set_exception(
                        error if isinstance(error, RedisError) else RedisError(spelled(error))
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
        """Send it to whoever has subscribed, together with whatever else is published in the same moment."""
        await self.begin_publish(channel, payload)

    def begin_publish(self, channel: bytes, payload: bytes) -> asyncio.Future[Any]:
        if len(self._pipes) >= OUTBOX:
            raise ChannelFull
        return self._pipes.publish(channel, payload)

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
        running: Group | None = None
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
                    elif channel == self._everybody and payload != self._origin:
                        self._meet()
                elif payload.startswith(b"F"):
                    publication = roomlog.unpack(payload)
                    if self._is_next(group, publication):
                        run.append(publication)
                else:
                    if run:
                        yield from self._pass(group, run)
                        run = []
                    yield from self._pass_other(group, payload)
            except (ValueError, IndexError, msgspec.DecodeError):
                logger.warning("message not understood", extra={"channel": channel.decode(errors="replace")})
        if run and running is not None:
            yield from self._pass(running, run)

    def _pass(self, group: Group, publications: Sequence[Publication]) -> Iterator[Awaitable[None]]:
        if len(group.listening) > SLICE or group.lock.locked():
            yield self._hand_on(group, publications)
        elif run := self._new(group, publications):
            begun = time_ns() if tracing.tracer else 0
            to_all(tuple(group.listening.items()), run.give)
            if begun:
                tracing.fanned_out(run.publications, len(group.listening), begun)
            tally.fan_out(run.publications, len(group.listening))

    def _pass_other(self, group: Group, payload: bytes) -> Iterator[Awaitable[None]]:
        if payload.startswith(b"E"):
            if len(payload) < 65:
                raise ValueError(payload)
            if not payload.startswith(self._origin, 1):  # whoever is here had our own at once
                ephemeral = Ephemeral(group.room or "", payload[65:], payload[33:65].rstrip().decode())
                yield from to_members(group, ephemeral.give)
                tally.sent("ephemeral", ephemeral.frame, ephemeral.sent)
        elif payload.startswith(b"M"):
            message = msgspec.msgpack.decode(payload[1:])
            yield from to_members(group, lambda outlet: outlet.message(copy(message)))

    async def hand_out(self, group: Group, message: dict[str, Any]) -> None:
        """A message to every member here, each with a copy of its own."""
        for slow in to_members(group, lambda outlet: outlet.message(copy(message))):
            await slow

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        payload = b"E%b%-32b%b" % (self._origin, ephemeral.sender.encode(), ephemeral.frame)
        for name in groups:
            if (group := self.groups.get(name)) is not None:
                for slow in to_members(group, ephemeral.give):
                    await slow
        tally.sent("ephemeral", ephemeral.frame, ephemeral.sent)
        channels = [roomlog.channel(name) for name in groups]
        is_lost = any(self._subscriptions.serving(channel).is_lost for channel in channels)
        if is_lost or len(self._pipes) >= OUTBOX:
            raise RedisError("only heard in this process: Redis does not answer")
        if self.is_alone:
            return
        for channel in channels:
            # Not awaited: what is stored nowhere may be lost on its way.
            self._pipes.publish(channel, payload)
        self._pipes.flush()

    def _is_next(self, group: Group, publication: Publication) -> bool:
        if publication.position <= group.accepted:
            return False
        group.newest = max(group.newest, publication.position)
        if publication.previous == group.accepted:
            group.accepted = publication.position
            return True
        if group.position:
            self._mend(group)
        return False

    def _new(self, group: Group, publications: Sequence[Publication]) -> Run | None:
        """What of these has not been handed on; whoever starts to listen from here on starts behind it."""
        publications = [each for each in publications if each.position > group.position]
        if not publications:
            return None
        group.position = publications[-1].position
        group.accepted = max(group.accepted, group.position)
        return Run(group.room or "", publications)

    async def _hand_on(self, group: Group, publications: Sequence[Publication]) -> None:
        async with group.lock:
            if run := self._new(group, publications):
                receivers, started = len(group.listening), perf_counter()
                begun = time_ns() if tracing.tracer else 0
                await to_each(group.listening, run.give)
                metrics.FANOUT_SECONDS.observe(perf_counter() - started)
                if begun:
                    tracing.fanned_out(run.publications, receivers, begun)
                tally.fan_out(run.publications, receivers)

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
            reading = self._reading[key] = asyncio.create_task(self._read(*key), name="read")
            reading.add_done_callback(lambda _: self._reading.pop(key, None))
        return await asyncio.shield(reading)

    async def _read(self, group: str, position: int, most: int) -> tuple[After, Run]:
        found = await roomlog.after(group, position, most, self._pipes)
        return found, Run(room_of_group(group) or "", found.publications)

    # --- Missing publications ------------------------------------------------------------------------

    def _mend(self, group: Group) -> None:
        if group.repair is None or group.repair.done():
            group.repair = asyncio.create_task(self.repair(group), name="repair")

    async def repair(self, group: Group) -> None:
        """Fetch from the log what did not arrive. What cannot be fetched is said: `room.gap`."""
        while self.groups.get(group.name) is group:
            position, newest = group.position, group.newest
            try:
                found = await self._after(group)
            except (RedisError, OSError) as error:
                logger.warning("room not repaired", extra={"room": group.room, "error": spelled(error)})
                await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311
                continue
            if isinstance(found, int):
                async with group.lock:
                    if group.position != position:
                        continue  # somebody else repaired it meanwhile: this is no longer what is missing
                    await self._say_gap(group, found)
            elif found.publications:
                await self._hand_on(group, found.publications)
                continue
            if group.newest == newest:  # else something came meanwhile that does not follow what is here
                group.newest = group.position
                return

    async def _after(self, group: Group) -> roomlog.After | int:
        """What the group has not got yet; the room's end when that cannot be had."""
        try:
            return await roomlog.after(group.name, group.position, REPAIR_SLICE, self._pipes)
        except Unrecoverable as lost:
            return lost.end or (await roomlog.ends([group.name], self._pipes))[group.name]

    async def _say_gap(self, group: Group, end: int) -> None:
        group.position = group.accepted = end
        metrics.GAPS.labels("lost").inc()
        gap = {"type": "room.gap", "room": group.room, "offset": str(end), "reason": "lost"}
        await self.hand_out(group, gap)

    def _on_restored(self, channels: Collection[bytes]) -> None:
        """They are subscribed again: whatever was published in them meanwhile did not reach us."""
        groups = [group for channel in channels if (group := self._by_channel.get(channel))]
        logger.info("subscription restored", extra={"groups": len(groups)})
        if self._own in channels or self._everybody in channels:
            self._meet()  # perhaps; nobody could tell us, and who looked meanwhile did not see us
            self.spawn(self._introduce())
        if any(group.room is None for group in groups):
            for tell in tuple(self.on_restored):
                tell()
        self.spawn(self._compare([group for group in groups if group.room is not None]))

    async def _compare(self, groups: Sequence[Group]) -> None:
        for group in groups:
            if not group.ready.done():
                group.ready.add_done_callback(lambda _, group=group: self._mend(group))  # type: ignore[misc]
        ready = [group for group in groups if group.ready.done()]
        for start in range(0, len(ready), COMPARE_BATCH):
            part = ready[start : start + COMPARE_BATCH]
            while True:
                try:
                    ends = await roomlog.ends([group.name for group in part], self._pipes)
                    break
                except (RedisError, OSError):
                    await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311
            for group in part:
                if ends[group.name] != group.position and self.groups.get(group.name) is group:
                    self._mend(group)

    # --- Liveness ------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Send ourselves a message through Redis whenever it was quiet; a connection that does not bring it is dead."""
        interval = proof_interval()
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval)
            subscription = self._subscriptions.serving(self._own)
            if subscription.is_connected:
                with contextlib.suppress(RedisError, OSError):  # TimeoutError is an OSError
                    async with asyncio.timeout(interval):
                        await self._look_around()
            if loop.time() - subscription.heard_at < interval or not subscription.is_connected:
                continue
            asked_at = loop.time()
            try:
                async with asyncio.timeout(interval * 2):
                    await self.publish(self._own, b"C")
            except (RedisError, OSError, ChannelFull):
                continue  # Redis does not take it: nothing is learnt about the subscription
            await asyncio.sleep(interval)
            if self._canary_at < asked_at and subscription.heard_at < asked_at:
                logger.warning("subscription does not deliver")
                subscription.reconnect()
