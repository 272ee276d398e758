"""Coroutines that seldom wait: the first step is taken at once, and only the rest, if there is one, needs a task."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Coroutine, Generator
from functools import partial
from typing import Any


def first_step(work: Coroutine[Any, Any, None]) -> Awaitable[None] | None:
    """Run a coroutine until it waits for something; returns what is left, to be awaited in a task. None: it is over.

    The first step has no current task, so it may not contain `asyncio.timeout`. Raises what it raises.
    """
    try:
        waiting = work.send(None)
    except StopIteration:
        return None
    return _rest(work, waiting)


@types.coroutine
def _rest(work: Coroutine[Any, Any, None], waiting: Any) -> Generator[Any, Any, None]:
    """Wait for what the coroutine waits for, and hand it the result or the exception, as `await` does."""
    while True:
        try:
            step = partial(work.send, (yield waiting))
        except BaseException as error:
            step = partial(work.throw, error)
        try:
            waiting = step()
        except StopIteration:
            return
