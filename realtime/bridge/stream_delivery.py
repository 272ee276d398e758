"""Stream deliveries: what the leader does for each of its streams.

A stream is read in order, in batches. One batch is in flight, and the next is sent only after it succeeded; after an
error the same entries are read again, fewer at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from realtime.bridge.batch import Batch, in_batches
from realtime.bridge.bus_entry import BusEntry, Source, entry_order, milliseconds
from realtime.bridge.bus_handlers import Handlers
from realtime.bridge.cursors import trim
from realtime.bridge.guard import StreamEntry, StreamGuard
from realtime.bridge.lag import Lag
from realtime.bridge.read_size import ReadSize
from realtime.layers import direct
from realtime.layers.history import Lease
from realtime.layers.interface import room_layer
from realtime.redis import schema_version
from realtime.redis.client import is_cancelled, key
from realtime.redis.pipelining import Pipes
from realtime.redis.topology import topology

READ_BLOCK = 0.2
"""Seconds that a read waits in Redis for news: well below the time-out of a connection (`realtime.redis.url`)."""
AGAIN_MILLISECONDS = 30_000
"""Longer than a Cluster takes to replace a server: cluster-node-timeout (15 s by default), and an election."""
TRIM_SECONDS = 60.0


@dataclass(eq=False)
class StreamDelivery:
    """Delivers what a stream brings behind a cursor, until cancelled or until the connection to Redis is lost."""

    source: Source
    cursor: bytes
    """Up to where the stream was read."""
    size: ReadSize
    handlers: Handlers
    term: Lease
    on_caught_up: Callable[[], None]

    def __post_init__(self) -> None:
        self.has_delivered = False
        self.is_caught_up = False
        self._stream = key(self.source.name).encode()
        self._again = entry_order(self.cursor)
        """Up to where the stream was delivered before and is delivered again."""
        # A new one: a Redis that took over may know neither of the stream's group nor that it has had one.
        self._guard = StreamGuard(self.source) if self.source.is_public else None
        self._in_flight: Batch | None = None
        self._lag = Lag()
        self._layer = room_layer()
        self._now = asyncio.get_running_loop().time
        self._trim_at = 0.0
        # Once: a Redis that takes over may have lost what moved the cursor.
        self._pipes = Pipes(once=True)

    async def run(self) -> None:
        """Deliver from the cursor on. Raises `redis.RedisError`.

        In a Cluster the cursor may know more than the rooms: a replica that took one over has not got the newest
        publications, and the cursor is on another server. So a little is done again there; rooms leave out what they
        have.
        """
        servers = topology()
        if not servers.spans_keys:
            self.cursor = b"%d-0" % max(milliseconds(self.cursor) - AGAIN_MILLISECONDS, 0)
        servers.on_arrival.add(self._pipes.close)  # then begin again
        try:
            found = self._read()
            while not (is_cancelled() or self._pipes.is_closed):
                found = await self._deliver(_entries(await found))
        except RedisError:
            self.size.failed()
            raise
        finally:
            servers.on_arrival.discard(self._pipes.close)
            self._pipes.close()

    def _read(self, *, wait: bool = False) -> Awaitable[Any]:
        """Read what is behind the cursor; with `wait`, wait for news. It is on its way when this returns."""
        block = ("BLOCK", int(READ_BLOCK * 1000)) if wait else ()
        return self._pipes.to(self._stream).send(
            "XREAD", "COUNT", self.size.count, *block, "STREAMS", self._stream, self.cursor
        )

    async def _deliver(self, read: list[StreamEntry]) -> Awaitable[Any]:
        """Deliver what was read; returns the next read, which is on its way meanwhile."""
        read = await self._admit(read)
        if read:
            self.cursor = read[-1][0]
        is_busy = self.size.adapt(read)
        following = None
        if is_busy:
            following = self._read()
            self._pipes.flush()  # Redis works on the batch before while we decode this one
        entries = [self.source.entry(entry_id, fields, self._again) for entry_id, fields in read]
        for part in in_batches(entries, self.handlers):
            await self._send(part)
        self._lag.log(is_busy=is_busy)
        return following or await self._idle(is_empty=not read)

    async def _admit(self, read: list[StreamEntry]) -> list[StreamEntry]:
        """The entries that may be delivered."""
        if self._guard is None:
            return read
        if self._guard.is_due(read):
            await self._confirm()
            await self._guard.check(self._pipes, self.cursor)
        return self._guard.admit(read)

    async def _send(self, entries: Sequence[BusEntry]) -> None:
        cursor = (key("cursors"), self._stream, entries[-1].id)
        batch = Batch(entries, self._pipes, cursor=cursor, layer=self._layer, again=self._again)
        await self._confirm()  # one batch in flight, the next only after the one before succeeded
        if any(entry.error or self.handlers.apply_to(entry) for entry in entries):
            await self.handlers.run(self._pipes, entries)
        self._in_flight = batch.send()

    async def _confirm(self) -> None:
        """Return when the batch in flight was published. Raises `redis.RedisError` if it was not."""
        if self._in_flight is not None:
            in_flight, self._in_flight = self._in_flight, None
            if (lag := await in_flight) is not None:
                self._lag.seconds = lag
            self.has_delivered = True

    async def _idle(self, *, is_empty: bool) -> Awaitable[Any]:
        """Do the rest while nothing waits to be read; returns a read that waits for news."""
        if is_empty:
            await self._confirm()
            self.is_caught_up = True
            self.on_caught_up()
        if self._now() >= self._trim_at:
            self._trim_at = self._now() + TRIM_SECONDS
            await trim([self.source])
            await schema_version.claim()  # again, in case that Redis was wiped
            await direct.allow(self.term)
        # In the same write as the batch: a single message costs one round trip. Whether the batch succeeded is asked
        # before the next one, or when nothing has come for a while.
        if not self._pipes.topology.spans_keys:
            await self._confirm()  # its remaining commands would wait behind the read
        following = self._read(wait=self.is_caught_up)
        self._pipes.flush()
        return following


def _entries(found: Any) -> list[StreamEntry]:
    """The entries in the answer to XREAD of one stream, which is nothing, a list or (in RESP3) a mapping of streams."""
    ((_, entries),) = (found.items() if isinstance(found, dict) else found) or ((b"", []),)
    return list(entries)
