"""What a process does besides answering, from its start or first request to its end."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from django.apps import apps

from realtime.connections.handshake import Message, Receive, Send
from realtime.inline.delivery import deliver
from realtime.server.lifespan import lifespan
from realtime.tasks.per_loop import PerLoop
from realtime.tasks.task_set import TaskSet

END_SECONDS = 4.0
"""The longest time that the end of a process waits until this instance has left."""


Work = tuple[str, Callable[[], Awaitable[None]]]
"""What runs until it is cancelled, and its name."""

EMBEDDED_BRIDGE: Sequence[Work] = (("embedded bridge", deliver),)


def inline_work() -> Sequence[Work]:
    """What runs inside: the bridge, and `run_inline` of each installed app that has one (its `AppConfig`).

    This module cannot import them: a process that only serves sockets knows nothing of the outbox.
    """
    works = {f"inline {app.label}": getattr(app, "run_inline", None) for app in apps.get_app_configs()}
    return [*EMBEDDED_BRIDGE, *[(name, work) for name, work in works.items() if work]]


class Life:
    """What the instance of one event loop does besides answering. A server without lifespan (daphne) gets one here."""

    def __init__(self) -> None:
        self._has_begun = False
        self._task: asyncio.Task[None] | None = None
        self._messages: list[Message] = [{"type": "lifespan.startup"}]
        self._is_over = asyncio.Event()
        self._inside = TaskSet()

    async def run(self, scope: Any, receive: Receive, send: Send, inside: Sequence[Work]) -> None:
        """The lifespan, with work inside."""
        self._has_begun = True
        for name, work in inside:
            self._inside.supervise(name, work)

        async def receive_and_stop() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._stop_inside()
            return message

        try:
            await lifespan(scope, receive_and_stop, send)
        finally:
            self._inside.cancel()

    async def _stop_inside(self) -> None:
        self._inside.cancel()
        await self._inside.ended()

    def begin(self, inside: Sequence[Work]) -> None:
        """The first request is here, and the server has announced no lifespan: it ends with the process."""
        if not self._has_begun:
            self._has_begun = True
            work = self.run({"type": "lifespan"}, self._receive, _ignore, inside)
            self._task = asyncio.create_task(work, name="life")
            atexit.register(self._end, asyncio.get_running_loop())

    async def _receive(self) -> Message:
        if self._messages:
            return self._messages.pop()
        await self._is_over.wait()
        return {"type": "lifespan.shutdown"}

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        """The process ends: its loop has stopped, or runs in another thread (the reloader of `runserver`)."""
        with contextlib.suppress(TimeoutError, RuntimeError):
            if loop.is_running():
                asyncio.run_coroutine_threadsafe(self._leave(), loop).result(END_SECONDS)
            elif not loop.is_closed():
                loop.run_until_complete(self._leave())

    async def _leave(self) -> None:
        self._is_over.set()
        if self._task is not None:
            async with asyncio.timeout(END_SECONDS):
                await self._task

    def abort(self) -> None:
        """The event loop ends."""
        self._inside.cancel()
        if self._task is not None:
            self._task.cancel()


async def _ignore(message: Message) -> None:
    pass


life: PerLoop[Life] = PerLoop(Life, Life.abort)
"""That of the running loop."""
