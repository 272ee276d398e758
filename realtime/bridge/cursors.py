"""Cursors: up to where each stream was delivered, kept in Redis for the next leader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from realtime.auth.revocation import now
from realtime.bridge.bus_entry import Source, milliseconds
from realtime.redis.client import client, key


async def read_cursors(sources: Sequence[Source]) -> list[bytes]:
    """The cursor of each source; its beginning when no bridge ever read it. Raises `redis.RedisError`."""
    saved: Any = await client().hmget(key("cursors"), [key(source.name) for source in sources])
    return [cursor or b"0-0" for cursor in saved]


async def trim(sources: Sequence[Source]) -> None:
    """Remove entries that are behind the cursors and older than their source keeps them. Raises `redis.RedisError`."""
    for source, cursor in zip(sources, await read_cursors(sources), strict=True):
        oldest = min(milliseconds(cursor), int((await now() - source.keep) * 1000))
        # Without a limit of its own, Redis stops after 10,000 entries: less than a busy minute brings.
        await client().xtrim(key(source.name), minid=oldest, limit=0)
