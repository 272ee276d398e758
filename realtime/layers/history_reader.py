"""Reading the histories of an event loop's rooms: once for all listeners that lack the same."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence

from redis.exceptions import RedisError, ResponseError

from realtime.layers import history
from realtime.layers.fanout import SLICE
from realtime.layers.group import Group
from realtime.layers.outlets import PublicationBatch
from realtime.protocol.publication import After, Unrecoverable
from realtime.redis.connection import is_refusal
from realtime.redis.pipelining import begin
from realtime.tasks.task_set import TaskSet
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

READ_COUNT = 100
"""Publications read from a history at once."""


class SharedRead:
    """One read of a history for many listeners, which go on in slices: thousands at once would block the loop."""

    def __init__(self, task: asyncio.Task[PublicationBatch | None]) -> None:
        self._task = task
        task.add_done_callback(self._wake)
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def result(self) -> PublicationBatch | None:
        """Wait for what was read. Raises what the read raised."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(woken)
        await woken
        return self._task.result()

    def _wake(self, _: object = None) -> None:
        for _ in range(min(SLICE, len(self._waiting))):
            if not (woken := self._waiting.popleft()).done():
                woken.set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._wake)


class HistoryReader:
    """Reads histories, and lets groups learn where theirs end."""

    def __init__(self, tasks: TaskSet) -> None:
        self._tasks = tasks
        self._reading: dict[tuple[str, int], SharedRead] = {}

    async def read(self, group: Group, position: int) -> PublicationBatch | None:
        """The first publications above a position; listeners at the same position share one read.

        Raises `Unrecoverable` or `redis.RedisError`.
        """
        key = (group.name, position)
        if (reading := self._reading.get(key)) is None:
            task = self._tasks.keep(begin(self._read(group, position)))
            task.add_done_callback(lambda _: self._reading.pop(key, None))
            reading = self._reading[key] = SharedRead(task)
        return await reading.result()

    async def _read(self, group: Group, position: int) -> PublicationBatch | None:
        try:
            found = await self.after(group, position, READ_COUNT, position)
        except (RedisError, OSError) as error:
            logger.warning("history not read", extra={"room": group.room, "error": spelled(error)})
            raise
        return PublicationBatch(found.publications) if found.publications else None

    async def after(
        self, group: Group, position: int, most: int, *written: int, reader: tuple[str, int] = ("", 0)
    ) -> After:
        """Read up to `most` publications, and learn where the history ends. Raises as `read` does.

        `written`: what a client here was written, so that this instance has received it. It may have come after the
        tail had passed it: from a Redis that has been replaced.
        """
        tail, received = group.tail, group.received
        try:
            found = await history.after(group.name, position, most, (received, *written), reader=reader)
        except Unrecoverable as lost:
            group.learn(lost.end, tail, received)
            raise
        group.learn(found.end, tail, received)
        return found

    async def learn_ends(self, groups: Sequence[Group]) -> list[Group]:
        """Ask where rooms end; returns those whose keys Redis refuses, not being ours. Raises `redis.RedisError`."""
        tails = {group: group.tail for group in groups if group.room is not None}
        received = {group.name: group.received for group in tails}
        try:
            ends = await history.ends(received, received) if tails else {}
        except ResponseError as error:
            if not is_refusal(error):  # the state of Redis is the reason, and no room
                raise
            if len(tails) > 1:
                return [group for each in tails for group in await self.learn_ends([each])]
            logger.warning("room refused", extra={"room": groups[0].room, "error": spelled(error)})
            return list(tails)
        for group, tail in tails.items():
            group.learn(ends[group.name], tail, received[group.name])
        return []
