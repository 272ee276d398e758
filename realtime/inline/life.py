"""What an instance inside a project's process does besides answering, from the first request to the end."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from django.apps import apps

from realtime.connections.handshake import Message, Receive, Send
from realtime.inline.delivery import deliver
from realtime.server.lifespan import lifespan
from realtime.tasks.per_loop import PerLoop
from realtime.tasks.task_set import TaskSet

END_SECONDS = 4.0
"""The longest time that the end of a process waits until this instance has left."""


def inline_work() -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """What runs inside, by name: the bridge, and `run_inline` of each installed app that has one (its `AppConfig`).

    This module cannot import them: a process that only serves sockets knows nothing of the outbox.
    """
    yield "inline bridge", deliver
    for app in apps.get_app_configs():
        if work := getattr(app, "run_inline", None):
            yield f"inline {app.label}", work


class Life:
    """What the instance of one event loop does besides answering. A server without lifespan (daphne) gets one here."""

    def __init__(self) -> None:
        self._has_begun = False
        self._task: asyncio.Task[None] | None = None
        self._messages: list[Message] = [{"type": "lifespan.startup"}]
        self._is_over = asyncio.Event()
        self._inside = TaskSet()

    async def run(self, scope: Any, receive: Receive, send: Send, *, is_inline: bool) -> None:
        """The lifespan, with the bridge and the relays of an outbox inside if that is asked for."""
        self._has_begun = True
        if is_inline:
            for name, work in inline_work():
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

    def begin(self, *, is_inline: bool) -> None:
        """The first request is here, and the server has announced no lifespan: it ends with the process."""
        if not self._has_begun:
            self._has_begun = True
            work = self.run({"type": "lifespan"}, self._receive, _ignore, is_inline=is_inline)
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
