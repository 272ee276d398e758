"""Values that belong to one event loop and end with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Generic, TypeVar

from asgiref.sync import AsyncToSync

from realtime.tasks.running import running_loop

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One value per event loop: made when the loop first asks for it, closed when the loop ends.

    `asyncio.run`, uvloop and `async_to_sync` end a loop with `shutdown_asyncgens()`: an asynchronous generator that the
    loop knows closes the value there, while transports can still be closed. The value of a loop that ended without it
    is closed when any loop first asks for its own. Safe to use from several threads, each with its loop.

    `close` is not awaited, so it cancels tasks and aborts transports.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], None]) -> None:
        self._make = make
        self._close = close
        self._kept: dict[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None]]] = {}
        """Each loop's value, and the generator that closes it."""

    def __call__(self) -> T:
        """The running loop's value."""
        loop = running_loop()
        kept = self._kept.get(loop)
        return kept[0] if kept is not None else self._begin(loop)

    def __len__(self) -> int:
        """How many loops have a value."""
        return len(self._kept)

    def clear(self) -> None:
        """Forget the values of all loops without closing them: the loops do not exist any more."""
        self._kept.clear()

    def pop(self) -> T | None:
        """Take the running loop's value away, if there is one. The caller closes it."""
        kept = self._kept.pop(asyncio.get_running_loop(), None)
        if kept is None:
            return None
        _step(kept[1].aclose())
        return kept[0]

    def end(self) -> None:
        """Close the running loop's value, if there is one."""
        if (value := self.pop()) is not None:
            self._close(value)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> T:
        self._close_ended()
        value = self._make()
        ending = self._until_the_end(loop)
        _step(ending.__anext__())
        self._kept[loop] = value, ending
        return value

    async def _until_the_end(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            if (kept := self._kept.pop(loop, None)) is not None:
                self._close(kept[0])

    def _close_ended(self) -> None:
        for loop in [loop for loop in list(self._kept) if loop.is_closed()]:
            if (kept := self._kept.pop(loop, None)) is not None:
                _step(kept[1].aclose())
                # A closed loop can't close its transports any more; they go with the last reference to them.
                with contextlib.suppress(RuntimeError):
                    self._close(kept[0])


def _step(awaitable: Awaitable[Any]) -> None:
    """Run a generator to its next `yield`, or to its end: it never waits."""
    with contextlib.suppress(StopIteration):
        awaitable.__await__().send(None)


def is_short_lived_loop() -> bool:
    """Whether the running loop was made by `async_to_sync` and ends with this call. False when that is not known.

    Also true inside a program that runs altogether under `async_to_sync`.
    """
    loops: Any = getattr(AsyncToSync, "loop_thread_executors", {})
    return asyncio.get_running_loop() in loops
