"""The channel layer in one event loop: its channels and groups, and what reaches them from Redis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any
from uuid import uuid4

import msgspec
from channels.exceptions import ChannelFull
from redis.exceptions import RedisError

from realtime import roomlog
from realtime.delivery import Ephemeral, Mailbox, Outlet, PublicationBatch
from realtime.fanout import SLICE, Compare, FanOut, Group, Message
from realtime.listener import Listener
from realtime.logs import spelled
from realtime.pipe import begin, pipes
from realtime.redis import key
from realtime.roomlog import Unrecoverable
from realtime.subscription import Message as Received
from realtime.subscriptions import Subscriptions, proof_interval
from realtime.supervision import report, supervise

logger = logging.getLogger(__name__)

READ_COUNT = 100
"""Publications read from a history at once."""
JOIN_SECONDS = 5.0
"""Longest wait for Redis to confirm a subscription."""
OUTBOX = 20_000
"""Messages on their way to Redis; beyond it `ChannelFull`."""
COMPARE_BATCH = 500
START_SECONDS = 1.0


def process_channel(process: str) -> bytes:
    """The Pub/Sub channel of a process: of everything that is sent to one of its channels."""
    return key("process", process).encode()


class SharedRead:
    """One read of a history for many listeners, which go on in slices: thousands at once would hold up all others."""

    def __init__(self, work: Coroutine[Any, Any, PublicationBatch | None]) -> None:
        self.task = begin(work)
        self.task.add_done_callback(self._tell)
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def result(self) -> PublicationBatch | None:
        """What was read, or raises what went wrong."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(told)
        await told
        return self.task.result()

    def _tell(self, _: object = None) -> None:
        for _ in range(min(SLICE, len(self._waiting))):
            if not (told := self._waiting.popleft()).done():
                told.set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._tell)


class Process:
    """The layer in one event loop."""

    def __init__(self) -> None:
        self.id = uuid4().hex
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
        self._pipes = pipes()
        self._opening: list[Group] = []
        self._watcher: asyncio.Task[None] | None = None
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
            self._watcher = asyncio.create_task(supervise("layer", self._watch), name="watch")
            self._reachable = self._spawn_supervised("introduce", self._introduce)
        if not self._reachable.done():
            await asyncio.wait([self._reachable], timeout=START_SECONDS)

    async def _introduce(self) -> None:
        """Become reachable, and tell every other process that it is not alone (any more)."""
        await self._subscriptions.subscribe([self._own, self._everybody])
        with contextlib.suppress(RedisError, OSError):
            await self.publish(self._everybody, self._origin)
            await self._look_around()
            await self._look_for_epoch()

    async def _look_around(self) -> None:
        """Find out whether there are other processes; those that start from now on introduce themselves."""
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
        tasks = self._all_tasks()
        self.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    def abort(self) -> None:
        """Give everything back without waiting: the event loop ends."""
        for group in self.groups.values():
            for listener in group.listeners:
                listener.close()
        self._hears_orders.set()  # nothing is to be recovered any more
        self._subscriptions.close()
        for task in self._all_tasks():
            task.cancel()

    def _all_tasks(self) -> list[asyncio.Task[Any]]:
        return [
            *self._tasks,
            *(reading.task for reading in self._reading.values()),
            *((self._watcher,) if self._watcher else ()),
        ]

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something on the side; it ends with the layer."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _spawn_supervised(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """`spawn` for what has to succeed in the end, whatever goes wrong on the way."""
        return self.spawn(supervise(name, work))

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

    def listener(self, name: str, outlet: Outlet) -> Listener:
        """Begin to enter a room; `enter` waits until that is done."""
        group = self._group(name)
        listener = Listener(group, outlet)
        group.listeners[listener] = None
        return listener

    async def enter(self, listeners: Sequence[Listener]) -> None:
        """Return once the rooms are subscribed to: the listeners are paused, where their rooms end.

        Raises `redis.RedisError`: then none of them is in its room.
        """
        try:
            await self._until_ready([listener.group for listener in listeners])
        except BaseException:
            for listener in listeners:
                self.exit(listener)
            raise
        for listener in listeners:
            listener.place(listener.group.tail)

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
                asyncio.get_running_loop().call_soon(lambda: self.spawn(self._open()))
            self._opening.append(group)
        return group

    async def _until_ready(self, groups: Sequence[Group]) -> None:
        await self.start()
        waiting = [group for group in groups if not group.ready.done()]
        if any(self._subscriptions.is_lost(group.channel) for group in waiting):
            raise RedisError("the subscription is lost; trying again")
        async with asyncio.timeout(JOIN_SECONDS):
            for group in groups:
                await asyncio.shield(group.ready)

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
        groups = []
        for group in opening:
            if self.groups.get(group.name) is group:
                groups.append(group)
            else:
                group.ready.set_result(None)  # left again already
        try:
            await self._subscriptions.subscribe([group.channel for group in groups])
            await self._learn_ends([group for group in groups if group.room is not None])
        except Exception as error:
            if not isinstance(error, RedisError | OSError):
                report("open")
            for group in groups:
                if not group.ready.done():
                    group.ready.set_exception(
                        error if isinstance(error, RedisError) else RedisError(spelled(error))
                    )
                    group.ready.exception()  # it may be that nothing waits for it any more
                self._drop(group)
            return
        for group in groups:
            if not group.ready.done():
                group.ready.set_result(None)

    # --- Publishing --------------------------------------------------------------------------------

    async def publish(self, channel: bytes, payload: bytes) -> None:
        """Send to every process that has subscribed. Raises `ChannelFull` or `redis.RedisError`."""
        if len(self._pipes) >= OUTBOX:
            raise ChannelFull
        await self._pipes.publish(channel, payload)

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        """Hand an ephemeral event to the members here, and send it to the other processes."""
        for name in groups:
            if (group := self.groups.get(name)) is not None and self._hears_orders.is_set():
                self._hand_out(group, ephemeral)
        channels = [roomlog.channel(name) for name in groups]
        if any(map(self._subscriptions.is_lost, channels)) or len(self._pipes) >= OUTBOX:
            raise RedisError("only the members in this process were reached: Redis does not answer")
        if self.is_alone:
            return
        payload = b"E%b%-32b%b" % (self._origin, ephemeral.sender.encode(), ephemeral.frame)
        for channel in channels:
            # Not awaited: what is stored nowhere may be lost on its way.
            self._pipes.publish(channel, payload)
        self._pipes.flush()

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
            group.receive(roomlog.unpack(payload))
        elif kind == b"M":
            group.put(Message(msgspec.msgpack.decode(payload[1:])))
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
            reading = self._reading[key] = SharedRead(self._read_history(group, position))
            reading.task.add_done_callback(lambda _: self._reading.pop(key, None))
        return await reading.result()

    async def _read_history(self, group: Group, position: int) -> PublicationBatch | None:
        while True:
            await self._hears_orders.wait()
            tail, losses = group.tail, self._losses
            try:
                found = await roomlog.after(group.name, position, READ_COUNT, self._pipes)
                end, batch = found.end, found.publications and PublicationBatch(found.publications)
            except Unrecoverable as lost:
                end = lost.end or (await roomlog.ends([group.name], self._pipes))[group.name]
                batch = None
                if self._losses == losses:
                    group.learn(end, tail)
                    raise Unrecoverable(end) from None
            except (RedisError, OSError) as error:
                logger.warning("history not read", extra={"room": group.room, "error": spelled(error)})
                raise
            if self._losses == losses:  # else an order may have been missed since
                group.learn(end, tail)
                return batch or None

    async def missed(self, group: Group, position: int) -> int | None:
        """How many publications came after a position; None when not all of them are known.

        The group's tail is then where its history ends. Raises `redis.RedisError`.
        """
        tail = group.tail
        try:
            return (await roomlog.after(group.name, position, 0, self._pipes)).missed
        except Unrecoverable as lost:
            if lost.end:
                group.learn(lost.end, tail)
            else:
                await self._learn_ends([group])
            return None

    async def _learn_ends(self, groups: Sequence[Group]) -> None:
        """Ask where rooms end. Raises `redis.RedisError`."""
        tails = [group.tail for group in groups]
        ends = await roomlog.ends([group.name for group in groups], self._pipes) if groups else {}
        for group, tail in zip(groups, tails, strict=True):
            group.learn(ends[group.name], tail)

    async def _compare(self, groups: Iterable[Group]) -> None:
        """Let listeners that lack something catch up, in rooms that may have had publications unknown to us."""
        rooms = [group for group in groups if group.room is not None]
        for group in rooms:
            if not group.ready.done():  # it is told where its room ends, perhaps from before the loss
                group.ready.add_done_callback(partial(self._compare_later, group))
        ready = [group for group in rooms if group.ready.done()]
        for start in range(0, len(ready), COMPARE_BATCH):
            part = ready[start : start + COMPARE_BATCH]
            while True:
                try:
                    await self._learn_ends(part)
                    break
                except (RedisError, OSError):
                    await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311
            for group in part:
                self._hand_out(group, Compare(group.tail))

    def _compare_later(self, group: Group, _: object) -> None:
        self._spawn_supervised("compare", lambda: self._compare([group]))

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
            group.room is None and group.ready.done() and self._subscriptions.is_lost(group.channel)
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
                    await self._look_for_epoch()
            except (RedisError, OSError):  # TimeoutError is an OSError
                pass

    async def _look_for_epoch(self) -> None:
        name = key("epoch")
        pipe = self._pipes.to(name)
        pipe.send("SET", name, uuid4().hex, "NX")  # another name each time: who sets it again notices, too
        known, self._epoch = self._epoch, await pipe.send("GET", name)
        if known is not None and known != self._epoch:
            logger.warning("redis lost its data")
            groups = tuple(self.groups.values())
            self._spawn_supervised("compare", lambda: self._compare(groups))  # however long it takes
