"""Reading several streams, each from its cursor on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

from realtime.cluster import shards
from realtime.pipe import Pipes, begin

READ_COUNT = 500
READ_BLOCK = 0.2
"""Seconds a read waits for news: under the bridge's lease, so that it is renewed in time."""

Entries = tuple[bytes, list[Any]]
"""A stream and its new entries."""


class Reading(Protocol):
    """What is behind the cursors."""

    def read(self, cursors: Mapping[bytes, bytes], *, wait: bool = False) -> Awaitable[Sequence[Entries]]:
        """On its way when this returns; with `wait` it gives news a moment to come. Raises `redis.RedisError`."""

    def close(self) -> None:
        """Give back what it has of its own."""


def reading(pipes: Pipes) -> Reading:
    """The reading that fits where Redis is."""
    return ReadTogether(pipes) if shards() is None else ReadEach()


class ReadTogether:
    """One command for all of them."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipe = pipes.to("")

    def read(self, cursors: Mapping[bytes, bytes], *, wait: bool = False) -> Awaitable[Sequence[Entries]]:
        return self._pipe.send(*_xread(cursors, wait))

    def close(self) -> None:
        """It has nothing of its own."""


class ReadEach:
    """In a Cluster a stream has a slot of its own: one read each, and whichever brings something is handed on."""

    def __init__(self) -> None:
        self._pipes: dict[bytes, Pipes] = {}
        """Of its own: what is sent behind a read that waits, waits too."""
        self._under_way: dict[bytes, asyncio.Future[Any]] = {}
        self._waits: set[bytes] = set()
        """Streams whose read was sent to wait for news."""

    def read(self, cursors: Mapping[bytes, bytes], *, wait: bool = False) -> Awaitable[Sequence[Entries]]:
        for stream, cursor in cursors.items():
            if stream not in self._under_way:
                pipe = self._pipes.setdefault(stream, Pipes()).to(stream)
                self._under_way[stream] = pipe.send(*_xread({stream: cursor}, wait))
                self._waits.discard(stream)
                if wait:
                    self._waits.add(stream)
        return begin(self._next(wait))

    async def _next(self, wait: bool) -> Sequence[Entries]:
        if wait:
            await asyncio.wait(self._under_way.values(), return_when=asyncio.FIRST_COMPLETED)
        elif quick := [read for stream, read in self._under_way.items() if stream not in self._waits]:
            await asyncio.wait(quick)
        done = [read for read in self._under_way.values() if read.done()]
        self._under_way = {stream: read for stream, read in self._under_way.items() if not read.done()}
        return [entries for read in done for entries in as_list(read.result())]

    def close(self) -> None:
        for pipes in self._pipes.values():
            pipes.close()


def as_list(found: Any) -> list[Entries]:
    """The answer to XREAD, which is a mapping, a list or nothing."""
    return list(found.items() if isinstance(found, dict) else found or ())


def _xread(cursors: Mapping[bytes, bytes], wait: bool) -> tuple[str | bytes | int, ...]:
    block = ("BLOCK", int(READ_BLOCK * 1000)) if wait else ()
    return ("XREAD", "COUNT", READ_COUNT, *block, "STREAMS", *cursors, *cursors.values())
