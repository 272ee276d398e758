"""Tasks that end together with what they belong to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from realtime.tasks.supervision import supervise

T = TypeVar("T")


class TaskSet:
    """Keeps tasks from being collected while they run, and cancels them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def keep(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        """Let a task belong to this set until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something on the side."""
        return self.keep(asyncio.create_task(work))

    def supervise(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run something on the side until it has succeeded (`realtime.tasks.supervision.supervise`)."""
        return self.spawn(supervise(name, work))

    def cancel(self) -> None:
        """Cancel all of them, without waiting."""
        for task in tuple(self._tasks):
            task.cancel()

    async def ended(self) -> None:
        """Wait until the tasks that run now are done."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
