"""After a loss: no room is served until no order can have been missed; then listeners read what they lack."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from redis.exceptions import RedisError

from realtime.layers.fanout import FanOut
from realtime.layers.group import Compare, Group
from realtime.layers.history_reader import HistoryReader
from realtime.layers.outlets import PublicationBatch
from realtime.tasks.task_set import TaskSet

logger = logging.getLogger(__name__)

COMPARE_BATCH = 500
"""Rooms that are compared with their histories at once."""


class GapRepair:
    """Knows what may have been missed in the groups of an event loop, and repairs it.

    Orders (revocations, expulsions, disconnects) come through groups that are no rooms. While a subscription of such a
    group is lost, nothing of any room is written. `is_lost` says whether the subscription of a channel is lost.
    """

    def __init__(
        self,
        groups: Mapping[bytes, Group],
        is_lost: Callable[[bytes], bool],
        histories: HistoryReader,
        fan_out: FanOut,
        tasks: TaskSet,
    ) -> None:
        self._groups = groups
        self._is_lost = is_lost
        self._histories = histories
        self._fan_out = fan_out
        self._tasks = tasks
        self._hears_orders = asyncio.Event()
        self._hears_orders.set()
        self._losses = 0
        self._lost_at = 0.0
        self.reviews: list[Callable[[float], Awaitable[None]]] = []
        """Awaited with the number of seconds for which orders may have been missed, before rooms are served again."""

    @property
    def hears_orders(self) -> bool:
        """Whether no order can have been missed."""
        return self._hears_orders.is_set()

    def close(self) -> None:
        """Let go what waits for orders: the event loop ends."""
        self._hears_orders.set()

    async def read(self, group: Group, position: int) -> PublicationBatch | None:
        """`HistoryReader.read`, but it returns (or raises) only while no order can have been missed."""
        await self._until_orders_are_heard()
        try:
            return await self._histories.read(group, position)
        finally:
            await self._until_orders_are_heard()

    async def _until_orders_are_heard(self) -> None:
        while not self._hears_orders.is_set():
            await self._hears_orders.wait()

    def on_lost(self, channels: Collection[bytes], since: float) -> None:
        """Channels are not subscribed any more. `since` (seconds since the epoch): the process ran at that time."""
        if any(map(self._carries_orders, channels)):
            self._losses += 1
            if self._hears_orders.is_set():
                self._hears_orders.clear()
                self._fan_out.stop()
                self._lost_at = since

    def on_restored(self, channels: Collection[bytes]) -> None:
        """Channels are subscribed again: what was published in them meanwhile has not come."""
        self._tasks.supervise("recover", lambda: self._recover(channels))

    def on_left(self, group: Group) -> None:
        """A group has no members any more: it may have been the last one whose orders were missing."""
        if group.room is None and not self._hears_orders.is_set():
            self.on_restored(())

    def compare(self, *groups: Group) -> None:
        """Compare rooms with their histories; a failure is retried until all are compared."""
        self._tasks.supervise("compare", lambda: self._compare(groups))

    def _carries_orders(self, channel: bytes) -> bool:
        group = self._groups.get(channel)
        return group is not None and group.room is None

    async def _recover(self, channels: Collection[bytes]) -> None:
        """Review rights first, then compare rooms: a client that was disconnected meanwhile gets no publication."""
        if self._hears_orders.is_set() and not any(map(self._carries_orders, channels)):
            await self._compare([group for channel in channels if (group := self._groups.get(channel))])
            return
        losses = self._losses
        if self._misses_orders():
            return  # they are lost on another server, too
        await self._review()
        if self._losses != losses:
            return  # lost again
        self._hears_orders.set()
        await self._compare(tuple(self._groups.values()))

    def _misses_orders(self) -> bool:
        return any(
            group.room is None and group.opening is None and self._is_lost(group.channel)
            for group in self._groups.values()
        )

    async def _review(self) -> None:
        for review in self.reviews:
            while True:
                try:
                    await review(time.time() - self._lost_at)
                    break
                except Exception:
                    logger.exception("review failed")
                    await asyncio.sleep(random.uniform(0.5, 1.0))  # noqa: S311

    async def _compare(self, groups: Sequence[Group]) -> None:
        """Let listeners catch up that lack something, in rooms that may have had publications unknown to us."""
        for start in range(0, len(groups), COMPARE_BATCH):
            part = groups[start : start + COMPARE_BATCH]
            while True:
                try:
                    await self._histories.learn_ends(part)
                    break
                except (RedisError, OSError):
                    await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311
            for group in part:
                group.put(Compare(group.tail))
                self._fan_out.serve(group)
