"""The schema version: how keys and messages in Redis are written, so that two incompatible versions never share them.

Within one schema version any two versions of this software run side by side: that is how an upgrade goes unnoticed. A
process that finds another schema version than its own behaves as if there were no Redis: it accepts no connection,
delivers nothing, changes the status of no user, and says why.
"""

from __future__ import annotations

from typing import Any

from redis.exceptions import RedisError

from realtime.redis.client import execute, key

SCHEMA_VERSION = 1
"""Raised when a key, a script's answer, or a message between processes changes so that the version before would
misunderstand it. A change that only adds to them keeps the schema version."""


class OtherSchemaVersion(RedisError):
    """This Redis is in use by a version with another schema version."""


async def claim() -> None:
    """Write the schema version to Redis, unless it is there. Raises `OtherSchemaVersion`, or `redis.RedisError`."""
    name = key("layout")
    found: Any = await execute("GET", name)
    if found is None:  # first a read: it passes even when Redis is full
        await execute("SET", name, SCHEMA_VERSION, "NX")
        found = await execute("GET", name)
    if found != str(SCHEMA_VERSION).encode():
        raise OtherSchemaVersion(
            f"{name} is {found and found.decode(errors='replace')}, this version writes {SCHEMA_VERSION}: "
            "let it run under a REALTIME_PREFIX of its own (docs/deployment.md)"
        )
