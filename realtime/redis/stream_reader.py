"""Reading several streams, each from its cursor on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from realtime.redis.pipelining import Pipes, begin
from realtime.redis.topology import topology

READ_FIRST = 100
"""Entries of a stream that are read at once when it was quiet."""
READ_MOST = 500
READ_BYTES = 1 << 20
"""About the most bytes that are read at once."""
READ_BLOCK = 0.2
"""Seconds that a read waits for new entries: less than the bridge's lease, which is renewed in time."""

Entries = tuple[bytes, list[Any]]
"""A stream and its new entries."""


class ReadSize:
    """The number of entries that are read at once: many small ones, or few large ones.

    After a failure the number is halved, and then grows by one at a time, as TCP's window does, so that a slow link
    fails seldom. (Until the stream has been quiet: then the cause may be gone.)
    """

    def __init__(self) -> None:
        self.count = READ_FIRST
        self._most = READ_MOST

    def adapt(self, found: Sequence[Entries]) -> bool:
        """Adapt to the size of what was read. Returns whether there are probably more entries."""
        sizes = [sum(map(len, fields)) for _, entries in found for _, fields in entries]
        is_full = any(len(entries) >= self.count for _, entries in found)
        self._most = min(self._most + 1, READ_MOST) if is_full else READ_MOST
        fitting = max(len(sizes) * READ_BYTES // max(sum(sizes), 1), 1) if sizes else READ_MOST
        self.count = min(fitting, self._most) if is_full else min(fitting, self.count, READ_FIRST)
        return is_full

    def failed(self) -> None:
        """Halve the number: perhaps a batch was too large."""
        self.count = self._most = max(self.count // 2, 1)


class Reading:
    """Reads the entries behind the cursors, with one command for all streams."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes

    def read(
        self, cursors: Mapping[bytes, bytes], count: int, *, wait: bool = False
    ) -> Awaitable[Sequence[Entries]]:
        """Read `count` entries of each stream at most. The command has been sent when this returns.

        With `wait` it waits for new entries for `READ_BLOCK` seconds. Raises `redis.RedisError`.
        """
        return self._pipes.to("").send(*_xread(cursors, count, wait))

    def close(self) -> None:
        """Close the connections that belong to this reader."""


class ReadEach(Reading):
    """Reads each stream of a Cluster on its own, since each has a slot; returns the entries that come first."""

    def __init__(self) -> None:
        self._own: dict[bytes, Pipes] = {}
        """Connections by stream: a command behind a read that waits would wait, too."""
        self._under_way: dict[bytes, asyncio.Future[Any]] = {}
        self._waits: set[bytes] = set()
        """Streams whose read waits for new entries."""

    def read(
        self, cursors: Mapping[bytes, bytes], count: int, *, wait: bool = False
    ) -> Awaitable[Sequence[Entries]]:
        for stream in cursors.keys() - self._under_way.keys():
            if stream not in self._own:
                self._own[stream] = Pipes()
            command = _xread({stream: cursors[stream]}, count, wait)
            self._under_way[stream] = self._own[stream].to(stream).send(*command)
            (self._waits.add if wait else self._waits.discard)(stream)
        return begin(self._next(wait))

    async def _next(self, wait: bool) -> Sequence[Entries]:
        if wait:
            await asyncio.wait(self._under_way.values(), return_when=asyncio.FIRST_COMPLETED)
        elif quick := [read for stream, read in self._under_way.items() if stream not in self._waits]:
            await asyncio.wait(quick)
        done = [self._under_way.pop(stream) for stream, read in list(self._under_way.items()) if read.done()]
        return [entries for read in done for entries in as_list(read.result())]

    def close(self) -> None:
        for pipes in self._own.values():
            pipes.close()


def reading(pipes: Pipes) -> Reading:
    """The reader that fits the topology."""
    return Reading(pipes) if topology().spans_keys else ReadEach()


def as_list(found: Any) -> list[Entries]:
    """The answer to XREAD, which is a mapping, a list or nothing."""
    return list(found.items() if isinstance(found, dict) else found or ())


def _xread(cursors: Mapping[bytes, bytes], count: int, wait: bool) -> tuple[str | bytes | int, ...]:
    block = ("BLOCK", int(READ_BLOCK * 1000)) if wait else ()
    return ("XREAD", "COUNT", count, *block, "STREAMS", *cursors, *cursors.values())
