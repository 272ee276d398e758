"""The channel layer in one event loop: its channels and groups, and what reaches them from Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from itertools import count

import msgspec
from channels.exceptions import ChannelFull
from redis.exceptions import RedisError

from realtime.layers import history
from realtime.layers.fanout import FanOut
from realtime.layers.gap_repair import GapRepair
from realtime.layers.group import Group, Message
from realtime.layers.history_reader import HistoryReader
from realtime.layers.listener import Listener
from realtime.layers.liveness import InstanceLiveness
from realtime.layers.outlets import Ephemeral, Mailbox, Outlet
from realtime.protocol.publication import Unrecoverable, unpack
from realtime.redis.pipelining import begin, pipes
from realtime.redis.pubsub import Message as Received
from realtime.redis.sharded_pubsub import Subscriptions
from realtime.tasks.instance import id_for
from realtime.tasks.task_set import TaskSet

logger = logging.getLogger(__name__)

JOIN_SECONDS = 5.0
"""Longest wait for Redis to confirm a subscription."""
OUTBOX = 16 * 1024 * 1024
"""Bytes on their way to Redis; beyond it `ChannelFull`."""


class LoopLayer:
    """The layer in one event loop."""

    def __init__(self) -> None:
        self.id = id_for("layer")
        self._origin = self.id.encode()
        self.numbers = count()
        """For the names of channels."""
        self.channels: dict[str, Mailbox] = {}
        self.groups: dict[bytes, Group] = {}
        """By Pub/Sub channel."""
        self._memberships: dict[str, set[bytes]] = {}
        """The groups of each channel that joined by `group_add`."""
        self._opening: list[Group] = []
        self._opened: asyncio.Task[None]
        """The task that opens them."""
        self.pipes = pipes()
        self.tasks = TaskSet()
        self._fan_out = FanOut()
        self._subscriptions = Subscriptions(self._on_messages, self._on_lost, self._on_restored)
        self._histories = HistoryReader(self.tasks)
        self.repair = GapRepair(
            self.groups, self._subscriptions.is_lost, self._histories, self._fan_out, self.tasks
        )
        self._read = self.repair.read  # once, not for each group
        self.liveness = InstanceLiveness(
            self.id, self._subscriptions, self.tasks, lambda: self.repair.compare(*self.groups.values())
        )

    async def close(self) -> None:
        """Give everything back."""
        self.abort()
        await self.tasks.ended()

    def abort(self) -> None:
        """Give everything back without waiting: the event loop ends."""
        for group in self.groups.values():
            for listener in group.listeners:
                listener.close()
        self.repair.close()
        self._subscriptions.close()
        self.tasks.cancel()

    def owns(self, channel: str) -> bool:
        """Whether the channel is one of this event loop."""
        return f".{self.id}!" in channel

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
        self._memberships.setdefault(channel, set()).add(group.channel)
        try:
            await self._until_open([group])
        except BaseException:
            self.leave(name, channel)
            raise

    def leave(self, name: str, channel: str) -> None:
        """Take a channel out of a group, if it is in."""
        group = history.channel(name)
        self._memberships.get(channel, set()).discard(group)
        self._remove(group, channel)

    def _remove(self, name: bytes, channel: str) -> None:
        if (group := self.groups.get(name)) is not None:
            group.members.pop(channel, None)
            self._drop_if_empty(group)

    async def enter(self, names: Sequence[str], outlet: Outlet) -> list[Listener]:
        """Return a listener in each room: paused, where it ends. Raises `redis.RedisError`: then there is none."""
        groups = [self._group(name) for name in names]
        listeners = [Listener(group, outlet) for group in groups]
        for group, listener in zip(groups, listeners, strict=True):
            group.listeners[listener] = None
        try:
            await self._until_open(groups)
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

    async def missed(self, listener: Listener, position: int, opened_at: float) -> int | None:
        """Count the publications after a position, where the listener then stands, that its connection will get.

        None when not all of them are known: then it stands where the room ends. Raises `redis.RedisError`.
        """
        group = listener.group
        if position == group.tail:
            listener.place(position)
            return 0  # everything after it arrives live
        try:
            reader = listener.outlet.connection_id, int(opened_at * 1e6)
            found = await self._histories.after(group, position, 0, reader=reader)
        except Unrecoverable:
            listener.place(group.tail)
            return None
        listener.place(position)
        return found.missed

    # --- Opening groups ----------------------------------------------------------------------------

    def _group(self, name: str) -> Group:
        group = self.groups.get(history.channel(name))
        if group is None:
            group = Group(name, self._read)
            self.groups[group.channel] = group
            if not self._opening:
                self._opened = self.tasks.keep(begin(self._open()))
            self._opening.append(group)
            group.opening = self._opened
        return group

    async def _open(self) -> None:
        """Subscribe to the groups that were opened in one turn of the loop, then learn where their rooms end."""
        opening, self._opening = self._opening, []
        groups = [
            group for group in opening if self.groups.get(group.channel) is group
        ]  # else it was left again
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                await self._subscriptions.subscribe([group.channel for group in groups])
                refused = await self._histories.learn_ends(groups)
        except Exception:
            for group in groups:
                self._drop(group)
            raise
        for group in groups:
            group.opening = None
        for group in refused:
            group.is_refused = True
            self._drop(group)

    async def _until_open(self, groups: Sequence[Group]) -> None:
        await self.liveness.start()
        if any(group.opening and self._subscriptions.is_lost(group.channel) for group in groups):
            raise RedisError("the subscription is lost; trying again")
        for group in groups:
            if group.opening is not None:
                await asyncio.shield(group.opening)
            if group.is_refused:
                raise RedisError("Redis refuses the room's keys")

    def _drop_if_empty(self, group: Group) -> None:
        if not len(group):
            self._drop(group)

    def _drop(self, group: Group) -> None:
        if self.groups.get(group.channel) is not group:
            return  # left, and entered again by another connection
        del self.groups[group.channel]
        # Of a group that could not be opened: the failure refers to it, and it would to the connections.
        group.members.clear()
        group.listeners.clear()
        self._subscriptions.unsubscribe(group.channel)
        self.repair.on_left(group)

    # --- Publishing --------------------------------------------------------------------------------

    async def publish(self, channel: bytes, payload: bytes) -> None:
        """Send to every instance that has subscribed. Raises `ChannelFull` or `redis.RedisError`."""
        if self.pipes.size >= OUTBOX:
            raise ChannelFull
        await self.pipes.publish(channel, payload)

    async def emit(self, groups: Sequence[str], ephemeral: Ephemeral) -> None:
        """Hand an ephemeral event to the members here, and send it to the other instances."""
        channels = [history.channel(name) for name in groups]
        for channel in channels:
            if (group := self.groups.get(channel)) is not None and self.repair.hears_orders:
                group.put(ephemeral)
                self._fan_out.serve(group)
        if any(map(self._subscriptions.is_lost, channels)) or self.pipes.size >= OUTBOX:
            raise RedisError("only the members in this instance were reached: Redis does not answer")
        if self.liveness.is_alone:
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
            group = self.groups.get(channel)
            if group is not receiving and receiving is not None:
                self._fan_out.serve(receiving)
            receiving = group
            try:
                if group is not None:
                    self._receive(group, payload)
                elif channel == self.liveness.own_channel:
                    self._receive_own(payload)
                elif channel == self.liveness.common_channel:
                    self.liveness.on_message(payload)
            except (ValueError, TypeError, IndexError, msgspec.DecodeError):
                logger.warning("message not understood", extra={"channel": channel.decode(errors="replace")})
        if receiving is not None:
            self._fan_out.serve(receiving)

    def _receive(self, group: Group, payload: bytes) -> None:
        kind = payload[:1]
        if kind == b"F":
            if not group.receive(unpack(payload)):
                self.repair.compare(group)
        elif kind == b"C":
            group.receive_cut(int(payload[1:]))
        elif kind == b"M":
            group.put(Message(payload[1:]))
        elif kind == b"E" and not payload.startswith(self._origin, 1):  # ours were handed out by `emit`
            group.put(_ephemeral(group.room or "", payload))
        if group.room is not None and not self.repair.hears_orders:
            group.clear()  # it is read from the history, once rights have been reviewed

    def _receive_own(self, payload: bytes) -> None:
        if payload.startswith(b"S"):
            channel, message = msgspec.msgpack.decode(payload[1:])
            if mailbox := self.channels.get(channel):
                mailbox.message(message)

    def _on_lost(self, channels: Collection[bytes]) -> None:
        self.repair.on_lost(channels, since=self.liveness.awake_at)

    def _on_restored(self, channels: Collection[bytes]) -> None:
        logger.info("subscription restored", extra={"channels": len(channels)})
        self.liveness.on_restored(channels)
        self.repair.on_restored(channels)


def _ephemeral(room: str, payload: bytes) -> Ephemeral:
    """As `emit` writes it. Raises `ValueError`."""
    if len(payload) < 65:
        raise ValueError(payload)
    return Ephemeral(room, payload[65:], payload[33:65].rstrip().decode())
