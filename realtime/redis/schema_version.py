"""Which layout the keys in Redis have, so that two versions that would not understand each other never share them.

Within one layout any two versions run side by side: that is how an upgrade goes unnoticed. A version that finds another
layout than its own behaves as if there were no Redis: it lets nobody in, delivers nothing, judges nobody, and says why.
"""

from __future__ import annotations

from typing import Any

from redis.exceptions import RedisError

from realtime.redis.client import execute, key

LAYOUT = 1
"""Raised when a key, a script's answer, or a message between processes changes so that the version before would take it
for something else. What only adds to them is the same layout."""


class OtherSchemaVersion(RedisError):
    """This Redis is in use by a version that writes it differently."""


async def claim() -> None:
    """Say which layout this is, unless it is said. Raises `OtherSchemaVersion`, or `redis.RedisError`."""
    name = key("layout")
    found: Any = await execute("GET", name)
    if found is None:  # first a read: it passes even when Redis is full
        await execute("SET", name, LAYOUT, "NX")
        found = await execute("GET", name)
    if found != str(LAYOUT).encode():
        raise OtherSchemaVersion(
            f"{name} is {found and found.decode(errors='replace')}, this version writes {LAYOUT}: "
            "let it run under a REALTIME_PREFIX of its own (docs/deployment.md)"
        )
