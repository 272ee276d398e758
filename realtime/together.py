"""Many askers, one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

Q = TypeVar("Q")
A = TypeVar("A")

_running: set[asyncio.Task[None]] = set()
"""The loop itself holds tasks by weak references only."""

MOST = 500
"""Questions a round trip."""


class Together(Generic[Q, A]):
    """Wraps `answer(questions) -> answers` so that whoever asks while it runs is answered by its next run.

    Alone, a question waits for nobody; in a storm, a round trip answers hundreds. What `answer` raises is raised to
    all whose question it was. One event loop knows nothing of another's questions.
    """

    def __init__(self, answer: Callable[[Sequence[Q]], Awaitable[Sequence[A]]]) -> None:
        self._answer = answer
        self._waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, list[tuple[Q, asyncio.Future[A]]]] = (
            WeakKeyDictionary()
        )

    async def ask(self, question: Q) -> A:
        """The answer to one question."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        if (waiting := self._waiting.get(loop)) is not None:
            waiting.append((question, future))
        else:
            self._waiting[loop] = [(question, future)]
            task = loop.create_task(self._run(loop), name="together")
            _running.add(task)
            task.add_done_callback(_running.discard)
        return await future

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await self._answer_all(loop)
        finally:
            # In the same turn of the loop that found nobody waiting: who asks next starts another run.
            del self._waiting[loop]

    async def _answer_all(self, loop: asyncio.AbstractEventLoop) -> None:
        while waiting := self._waiting[loop]:
            batch, self._waiting[loop] = waiting[:MOST], waiting[MOST:]
            try:
                answers = await self._answer([question for question, _ in batch])
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(
                            error if isinstance(error, Exception) else ConnectionError("stopped")
                        )
                if not isinstance(error, Exception):
                    raise
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
