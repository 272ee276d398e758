"""An event loop in a thread of its own, for tests with a loop, with several, or with none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from realtime.client.errors import CallFailed, Denied

T = TypeVar("T")

TOLD = (AssertionError, CallFailed, Denied)
"""What a test is told. Its traceback ends at the line of the test, since it does not matter where it was raised."""


class BackgroundLoop:
    """Context manager: the loop runs while the block does. What is still running in it at the end is cancelled."""

    def __init__(self) -> None:
        self._is_running = threading.Event()
        self._thread = threading.Thread(target=self._run, name="realtime.testing", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_running.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop, wait for it, and return its result."""
        __tracebackhide__ = True
        try:
            return self._begin(coroutine).result()
        except TOLD as error:
            raise error.with_traceback(None) from None

    async def arun(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """`run` from another loop, which goes on meanwhile."""
        __tracebackhide__ = True
        try:
            return await asyncio.wrap_future(self._begin(coroutine))
        except TOLD as error:
            raise error.with_traceback(None) from None

    def _begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _run(self) -> None:
        asyncio.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._is_running.set()
        await self._stop.wait()
