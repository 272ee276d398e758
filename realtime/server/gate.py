"""A gate that coroutines wait at."""

from __future__ import annotations

import asyncio


class Gate:
    """`asyncio.Event` without the 600 bytes of a queue for waiters: a connection hardly ever waits."""

    __slots__ = ("_closed",)

    def __init__(self) -> None:
        self._closed: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Open it."""
        if self._closed is not None:
            if not self._closed.done():
                self._closed.set_result(None)
            self._closed = None

    def clear(self) -> None:
        """Close it."""
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()

    def is_set(self) -> bool:
        """Whether it is open."""
        return self._closed is None

    async def wait(self) -> None:
        """Return once it is open."""
        while self._closed is not None:
            await asyncio.shield(self._closed)
