"""The guard of a stream that backbones write: no id that they choose stops the bus or loses an entry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from realtime.bridge.bus_entry import Source, milliseconds
from realtime.bridge.dead_letters import dead_letter
from realtime.protocol.bus_message import InvalidMessage
from realtime.redis.client import key, script
from realtime.redis.connection import Argument
from realtime.redis.pipelining import Pipes

logger = logging.getLogger(__name__)

AHEAD_SECONDS = 5.0
"""How far an entry's id may be ahead of Redis' clock, or of the cursor: another server's clock may have given it."""
CHECK_SECONDS = 1.0
GROUP = "bridge"
"""The consumer group by which a stream that was begun anew is known."""
MOST = 1000
"""About as many entries are examined by one call."""

_GUARD = script(Path(__file__).parent / "scripts" / "guard.lua")

StreamEntry = tuple[bytes, list[bytes]]
"""Id, and names and values."""


def _fingerprint(entry: StreamEntry) -> tuple[bytes, int]:
    """What tells two entries apart: a stream that was begun anew may give the same id again."""
    entry_id, fields = entry
    return entry_id, hash(fields[-1])


class StreamGuard:
    """Decides which entries of a stream may be delivered. The others get new ids, or become dead letters."""

    def __init__(self, source: Source) -> None:
        self._name = key(source.name)
        self.stream = self._name.encode()
        self._source = source
        self._field = self.stream + b":" + GROUP.encode()
        """Of the hash of cursors; set once the stream has had its group."""
        self._was_marked: bool | None = None
        self._now = asyncio.get_running_loop().time
        self._check_at = 0.0
        self._read: set[tuple[bytes, int]] = set()
        """Entries read since the last check: if the stream was begun anew meanwhile, some may be of the new one."""
        self._limit = float("inf")
        self._limit_at = 0.0

    def is_due(self, entries: Sequence[StreamEntry]) -> bool:
        """Whether to `check` the stream before these entries are delivered."""
        return self._now() >= self._check_at or (
            bool(entries) and milliseconds(entries[-1][0]) > self._latest()
        )

    def admit(self, entries: list[StreamEntry]) -> list[StreamEntry]:
        """The entries that may be delivered; the others will be read again, by new ids."""
        latest = self._latest()
        if entries and milliseconds(entries[-1][0]) > latest:
            entries = [entry for entry in entries if milliseconds(entry[0]) <= latest]
        self._read.update(map(_fingerprint, entries))
        return entries

    def _latest(self) -> float:
        """The highest time of an id that may be delivered: by Redis' clock, which goes on as fast as ours."""
        return self._limit + (self._now() - self._limit_at) * 1000

    async def check(self, pipes: Pipes, cursor: bytes) -> None:
        """Check the stream, of which all that was read up to `cursor` has been delivered. Raises `redis.RedisError`."""
        missed = await self._ask(pipes, cursor)
        while missed:
            await self._keep(pipes, missed)
            missed = await self._ask(pipes, cursor)
        if not self._was_marked:
            await pipes.to(key("cursors")).send("HSET", key("cursors"), self._field, "1")
            self._was_marked = True
        self._read.clear()
        self._check_at = self._now() + CHECK_SECONDS

    async def _ask(self, pipes: Pipes, cursor: bytes) -> list[Any]:
        if self._was_marked is None:
            mark: Any = await pipes.to(key("cursors")).send("HGET", key("cursors"), self._field)
            self._was_marked = mark is not None
        arguments: list[Argument] = [cursor, int(AHEAD_SECONDS * 1000), GROUP, int(self._was_marked), MOST]
        limit, moved, missed = await pipes.to(self.stream).run(_GUARD, [self._name], arguments)
        self._limit, self._limit_at = float(limit), self._now()
        if moved:
            logger.warning("entries were ahead of Redis' clock", extra={"entries": moved})
        return list(missed)

    async def _keep(self, pipes: Pipes, missed: Sequence[StreamEntry]) -> None:
        """Keep entries that no read would have found as dead letters, then delete them."""
        text = "its id is not above those read before: the stream was deleted, and the entry added by an explicit id"
        entries = [
            self._source.entry(entry_id, fields)
            for entry_id, fields in missed
            if _fingerprint((entry_id, fields)) not in self._read
        ]
        error = InvalidMessage("below_cursor", text)
        await asyncio.gather(*[dead_letter(pipes, entry, error) for entry in entries])
        await pipes.to(self.stream).send("XDEL", self.stream, *[entry_id for entry_id, _ in missed])
