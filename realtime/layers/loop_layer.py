"""The channel layer in one event loop: its channels and groups, and what reaches them from Redis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from itertools import count
from typing import Any
from uuid import uuid4

import msgspec
from channels.exceptions import ChannelFull
from redis.exceptions import RedisError, ResponseError

from realtime.layers import history as roomlog
from realtime.layers.fanout import SLICE, Compare, FanOut, Group, Message
from realtime.layers.listener import Listener
from realtime.layers.outlets import Ephemeral, Mailbox, Outlet, PublicationBatch
from realtime.protocol.publication import After, Unrecoverable, unpack
from realtime.redis.client import key
from realtime.redis.pipelining import begin, pipes
from realtime.redis.pubsub import Message as Received
from realtime.redis.sharded_pubsub import Subscriptions, proof_interval
from realtime.tasks.instance import id_for
from realtime.tasks.supervision import supervise
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

READ_COUNT = 100
"""Publications read from a history at once."""
JOIN_SECONDS = 5.0
"""Longest wait for Redis to confirm a subscription."""
OUTBOX = 16 * 1024 * 1024
"""Bytes on their way to Redis; beyond it `ChannelFull`."""
COMPARE_BATCH = 500
START_SECONDS = 1.0


def process_channel(process: str) -> bytes:
    """The Pub/Sub channel of a process: of everything that is sent to one of its channels."""
    return key("process", process).encode()


class SharedRead:
    """One read of a history for many listeners, which go on in slices: thousands at once would hold up all others."""

    def __init__(self, task: asyncio.Task[PublicationBatch | None]) -> None:
        self._task = task
        task.add_done_callback(self._tell)
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def result(self) -> PublicationBatch | None:
        """What was read, or raises what went wrong."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(told)
        await told
        return self._task.result()

    def _tell(self, _: object = None) -> None:
        for _ in range(min(SLICE, len(self._waiting))):
            if not (told := self._waiting.popleft()).done():
                told.set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._tell)


class LoopLayer:
    """The layer in one event loop."""

    def __init__(self) -> None:
        self.id = id_for("layer")
        self._origin = self.id.encode()
        self.numbers = count()
        """For the names of channels."""
        self.channels: dict[str, Mailbox] = {}
        self.groups: dict[str, Group] = {}
        self._by_channel: dict[bytes, Group] = {}
        self._memberships: dict[str, set[str]] = {}
        self._fan_out = FanOut()
        self._own = process_channel(self.id)
        self._everybody = key("processes").encode()
        self._subscriptions = Subscriptions(self._on_messages, self._on_lost, self._on_restored)
        self.pipes = pipes()
        self._opening: list[Group] = []
        self._opened: asyncio.Task[None]
        """It opens them."""
        self._reachable: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reading: dict[tuple[str, int], SharedRead] = {}
        self._epoch: bytes | None = None
        """Which life of Redis' data this is: it changes when they are wiped."""
        self._hears_orders = asyncio.Event()
        """Not set while orders (revocations and the like) may have been missed: then no room is listened to."""
        self._hears_orders.set()
        self._losses = 0
        self.is_alone = False
        """No other process has this layer, so that all members of its groups are here."""
        self._has_met = False
        """Another process has introduced itself since we last looked."""
        self._lost_at = 0.0
        """When (seconds since the epoch) orders began to be missed."""
        self._awake_at = deque((time.time(), time.time()), maxlen=2)
        """The last times at which this process is known to have run."""
        self.on_restored: list[Callable[[float], Awaitable[None]]] = []
        """Awaited when messages to groups may have been lost, for so many seconds, before rooms are served again."""

    def owns(self, channel: str) -> bool:
        """Whether the channel is one of this process."""
        return f".{self.id}!" in channel

    async def start(self) -> None:
        """Subscribe to the process's own channel.

        Waits until other processes can send to channels of this one, but not long for a Redis that is away.
        """
        if self._reachable is None:
            self._reachable = self._spawn_supervised("introduce", self._introduce)
            self._spawn_supervised("layer", self._watch)
        if not self._reachable.done():
            await asyncio.wait([self._reachable], timeout=START_SECONDS)

    async def _introduce(self) -> None:
        """Become reachable, and tell every other process that it is not alone (any more)."""
        await self._subscriptions.subscribe([self._own, self._everybody])
        with contextlib.suppress(RedisError, OSError):
            await self.publish(self._everybody, self._origin)
            await self._look_around()

    async def _look_around(self) -> None:
        """Find out whether there are other processes, and whether Redis still has its data.

        Processes that start from now on introduce themselves.
        """
        self._has_met = False
        self.is_alone = await self.pipes.listeners(self._everybody) == 1 and not self._has_met
        name = key("epoch")
        pipe = self.pipes.to(name)
        pipe.send("SET", name, uuid4().hex, "NX")  # another name each time: who sets it again notices, too
        known, self._epoch = self._epoch, await pipe.send("GET", name)
        if known is not None and known != self._epoch:
            logger.warning("redis lost its data")
            groups = tuple(self.groups.values())
            self._spawn_supervised("compare", lambda: self._compare(groups))  # however long it takes

    def _meet(self) -> None:
        self._has_met = True
        self.is_alone = False

    async def close(self) -> None:
        """Give everything back."""
        tasks = tuple(self._tasks)
        self.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    def abort(self) -> None:
        """Give everything back without waiting: the event loop ends."""
        for group in self.groups.values():
            for listener in group.listeners:
                listener.close()
        self._hears_orders.set()  # nothing is to be recovered any more
        self._subscriptions.close()
        for task in tuple(self._tasks):
            task.cancel()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something on the side; it ends with the layer."""
        return self._keep(asyncio.create_task(work))

    def _spawn_supervised(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """`spawn` for what has to succeed in the end, whatever goes wrong on the way."""
        return self.spawn(supervise(name, work))

    def _keep(self, task: asyncio.Task[Any]) -> asyncio.Task[Any]:
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
        """Add a channel to a group. Raises `redis.RedisError`."""
        group = self._group(name)
        group.members[channel] = self.channels[channel]
        self._memberships.setdefault(channel, set()).add(name)
        try:
            await self._until_ready([group])
        except BaseException:
            self.leave(name, channel)
            raise

    def leave(self, name: str, channel: str) -> None:
        """Take a channel out of a group, if it is in."""
        self._memberships.get(channel, set()).discard(name)
        self._remove(name, channel)

    def _remove(self, name: str, channel: str) -> None:
        if (group := self.groups.get(name)) is not None:
            group.members.pop(channel, None)
            self._drop_if_empty(group)

    async def enter(self, names: Sequence[str], outlet: Outlet) -> list[Listener]:
        """Return a listener in each room: paused, where the room ends.

        Raises `redis.RedisError`: then there is none.
        """
        listeners = [Listener(self._group(name), outlet) for name in names]
        for listener in listeners:
            listener.group.listeners[listener] = None
        try:
            await self._until_ready([listener.group for listener in listeners])
        except BaseException:
            for listener in listeners:
                self.exit(listener)
            raise
        for listener in listeners:
            listener.place(listener.group.tail)
        return listeners

    def exit(self, listener: Listener) -> None:
        """Leave a room."""
        listener.close()
        listener.group.listeners.pop(listener, None)
        self._drop_if_empty(listener.group)

    def _group(self, name: str) -> Group:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(name, self._read, self._hears_orders)
            self._by_channel[group.channel] = group
            if not self._opening:
                self._opened = self._keep(begin(self._open()))
            self._opening.append(group)
            group.opening = self._opened
        return group

    async def _until_ready(self, groups: Sequence[Group]) -> None:
        await self.start()
        waiting = [group for group in groups if group.opening is not None]
        if any(self._subscriptions.is_lost(group.channel) for group in waiting):
            raise RedisError("the subscription is lost; trying again")
        async with asyncio.timeout(JOIN_SECONDS):
            for group in waiting:
                if group.opening is not None:  # still
                    await asyncio.shield(group.opening)
                if group.opening is not None and group.opening.done():
                    group.opening.result()  # raises what this one was refused with

    def _drop_if_empty(self, group: Group) -> None:
        if not len(group):
            self._drop(group)

    def _drop(self, group: Group) -> None:
        if self.groups.get(group.name) is not group:
            return  # left, and entered again by another connection
        del self.groups[group.name]
        self._by_channel.pop(group.channel, None)
        self._subscriptions.unsubscribe(group.channel)
        if group.room is None and not self._hears_orders.is_set():
            self._spawn_supervised(
                "recover", lambda: self._recover(())
            )  # perhaps it was the last one that was missed

    async def _open(self) -> None:
        """Subscribe to the groups that were opened in one turn of the loop, then learn where their rooms end."""
        opening, self._opening = self._opening, []
        groups = [
            group for group in opening if self.groups.get(group.name) is group
        ]  # else it was left again
        try:
            await self._subscriptions.subscribe([group.channel for group in groups])
            refused = await self._learn_ends(groups)
        except Exception:
            for group in groups:
                self._drop(group)
            raise
        for group in groups:
            group.opening = self._refusal() if group in refused else None
            if group in refused:
                self._drop(group)

    @staticmethod
    def _refusal() -> asyncio.Future[None]:
        refusal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refusal.set_exception(RedisError("Redis refuses the room's keys"))
        refusal.exception()  # it may be that nothing waits for it any more
        return refusal

    # --- Publishing --------------------------------------------------------------------------------

    async def publish(self, channel: bytes, payload: bytes) -> None:
        """Send to every process that has subscribed. Raises `ChannelFull` or `redis.RedisError`."""
        if self.pipes.size >= OUTBOX:
            raise ChannelFull
        await self.pipes.publish(channel, payload)

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        """Hand an ephemeral event to the members here, and send it to the other processes."""
        for name in groups:
            if (group := self.groups.get(name)) is not None and self._hears_orders.is_set():
                self._hand_out(group, ephemeral)
        channels = [roomlog.channel(name) for name in groups]
        if any(map(self._subscriptions.is_lost, channels)) or self.pipes.size >= OUTBOX:
            raise RedisError("only the members in this process were reached: Redis does not answer")
        if self.is_alone:
            return
        payload = b"E%b%-32b%b" % (self._origin, ephemeral.sender.encode(), ephemeral.frame)
        for channel in channels:
            # Not awaited: what is stored nowhere may be lost on its way.
            self.pipes.publish(channel, payload)
        self.pipes.flush()

    # --- Receiving ---------------------------------------------------------------------------------

    def _on_messages(self, messages: Sequence[Received]) -> None:
        """Hand out what has arrived. Consecutive publications of a room go out together."""
        receiving: Group | None = None
        for channel, payload in messages:
            group = self._by_channel.get(channel)
            if group is not receiving and receiving is not None:
                self._fan_out.serve(receiving)
            receiving = group
            try:
                if group is not None:
                    self._receive(group, payload)
                elif channel == self._own:
                    self._on_own(payload)
                elif channel == self._everybody and payload != self._origin:
                    self._meet()
            except (ValueError, TypeError, IndexError, msgspec.DecodeError):
                logger.warning("message not understood", extra={"channel": channel.decode(errors="replace")})
        if receiving is not None:
            self._fan_out.serve(receiving)

    def _receive(self, group: Group, payload: bytes) -> None:
        kind = payload[:1]
        if kind == b"F":
            group.receive(unpack(payload))
        elif kind == b"M":
            group.put(Message(payload[1:]))
        elif kind == b"E":
            if len(payload) < 65:
                raise ValueError(payload)
            if not payload.startswith(self._origin, 1):  # the members here had our own at once
                sender = payload[33:65].rstrip().decode()
                group.put(Ephemeral(group.room or "", payload[65:], sender))
        if group.room is not None and not self._hears_orders.is_set():
            group.clear()  # it is read from the history, once rights have been looked at again

    def _hand_out(self, group: Group, item: Ephemeral | Compare) -> None:
        group.put(item)
        self._fan_out.serve(group)

    def _on_own(self, payload: bytes) -> None:
        if payload.startswith(b"S"):
            channel, message = msgspec.msgpack.decode(payload[1:])
            if mailbox := self.channels.get(channel):
                mailbox.message(message)

    # --- Histories -----------------------------------------------------------------------------------

    async def _read(self, group: Group, position: int) -> PublicationBatch | None:
        """Read once for all listeners that stand at the same position, as after an outage they do."""
        key = (group.name, position)
        if (reading := self._reading.get(key)) is None:
            task = self._keep(begin(self._read_history(group, position)))
            task.add_done_callback(lambda _: self._reading.pop(key, None))
            reading = self._reading[key] = SharedRead(task)
        return await reading.result()

    async def _read_history(self, group: Group, position: int) -> PublicationBatch | None:
        await self._hears_orders.wait()
        try:
            found = await self._after(group, position, READ_COUNT)
        except (RedisError, OSError) as error:
            logger.warning("history not read", extra={"room": group.room, "error": spelled(error)})
            raise
        return PublicationBatch(found.publications) if found.publications else None

    async def _after(self, group: Group, position: int, most: int) -> After:
        """Read a history, and learn where it ends. Raises `Unrecoverable` or `redis.RedisError`."""
        tail = group.tail
        try:
            found = await roomlog.after(group.name, position, most, self.pipes)
        except Unrecoverable as lost:
            group.learn(lost.end, tail)
            raise
        group.learn(found.end, tail)
        return found

    async def missed(self, listener: Listener, position: int) -> int | None:
        """How many publications came after a position, where the listener then stands.

        None when not all of them are known: then it stands where the room ends. Raises `redis.RedisError`.
        """
        group = listener.group
        if position == group.tail:
            listener.place(position)
            return 0  # everything after it arrives live
        try:
            found = await self._after(group, position, 0)
        except Unrecoverable:
            listener.place(group.tail)
            return None
        listener.place(position)
        return found.missed

    async def _learn_ends(self, groups: Sequence[Group]) -> list[Group]:
        """Ask where rooms end; returns those whose keys Redis refuses, not being ours. Raises `redis.RedisError`."""
        tails = {group: group.tail for group in groups if group.room is not None}
        try:
            ends = await roomlog.ends([group.name for group in tails], self.pipes) if tails else {}
        except ResponseError as error:
            if type(error) is not ResponseError:  # it is Redis' state, and not one of them
                raise
            if len(tails) > 1:
                return [group for each in tails for group in await self._learn_ends([each])]
            logger.warning("room refused", extra={"room": groups[0].room, "error": spelled(error)})
            return list(tails)
        for group, tail in tails.items():
            group.learn(ends[group.name], tail)
        return []

    async def _compare(self, groups: Sequence[Group]) -> None:
        """Let listeners that lack something catch up, in rooms that may have had publications unknown to us."""
        for start in range(0, len(groups), COMPARE_BATCH):
            part = groups[start : start + COMPARE_BATCH]
            while True:
                try:
                    await self._learn_ends(part)
                    break
                except (RedisError, OSError):
                    await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311
            for group in part:
                self._hand_out(group, Compare(group.tail))

    # --- Losses --------------------------------------------------------------------------------------

    def _on_lost(self, channels: Collection[bytes]) -> None:
        """The subscription was cut: what is published in these channels from now on does not reach us."""
        if any(self._carries_orders(channel) for channel in channels):
            self._losses += 1
            if self._hears_orders.is_set():
                self._hears_orders.clear()
                self._fan_out.stop()
                # Perhaps lost while the process was suspended: then this is told after it has woken up, before or after
                # `_watch` has.
                self._lost_at = self._awake_at[0]

    def _carries_orders(self, channel: bytes) -> bool:
        group = self._by_channel.get(channel)
        return group is not None and group.room is None

    def _on_restored(self, channels: Collection[bytes]) -> None:
        """They are subscribed again: whatever was published in them meanwhile did not reach us."""
        logger.info("subscription restored", extra={"channels": len(channels)})
        if self._own in channels or self._everybody in channels:
            self._meet()  # perhaps: another process may have come meanwhile, and did not see us
            self._spawn_supervised("introduce", self._introduce)
        self._spawn_supervised("recover", lambda: self._recover(channels))

    async def _recover(self, channels: Collection[bytes]) -> None:
        """Look at rights first, then at rooms: no publication goes to a client that was disconnected meanwhile."""
        if self._hears_orders.is_set() and not any(map(self._carries_orders, channels)):
            await self._compare([group for channel in channels if (group := self._by_channel.get(channel))])
            return
        losses = self._losses
        if self._misses_orders():
            return  # they are lost on another server, too
        await self._review()
        if self._losses != losses:
            return  # lost again
        self._hears_orders.set()
        await self._compare(tuple(self.groups.values()))

    def _misses_orders(self) -> bool:
        return any(
            group.room is None and group.opening is None and self._subscriptions.is_lost(group.channel)
            for group in self.groups.values()
        )

    async def _review(self) -> None:
        for review in self.on_restored:
            while True:
                try:
                    await review(time.time() - self._lost_at)
                    break
                except Exception:
                    logger.exception("review failed")
                    await asyncio.sleep(random.uniform(0.5, 1.0))  # noqa: S311

    async def _watch(self) -> None:
        """See regularly whether this process is alone, and whether Redis still has its data."""
        while True:
            await asyncio.sleep(proof_interval())
            self._awake_at.append(time.time())
            try:
                async with asyncio.timeout(proof_interval()):
                    await self._look_around()
            except (RedisError, OSError):  # TimeoutError is an OSError
                pass
