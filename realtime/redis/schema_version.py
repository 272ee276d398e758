"""The schema version of the keys in Redis, so that two incompatible versions of the server never share them.

Versions of the server with the same schema version run side by side, so that an upgrade goes unnoticed. A server that
finds another schema version behaves as if there were no Redis: it refuses handshakes, delivers nothing, decides on no
user's presence, and says why.
"""

from __future__ import annotations

from typing import Any

from redis.exceptions import RedisError

from realtime.redis.client import execute, key

LAYOUT = 1
"""Raised when a key, a script's answer, or a message between instances changes so that the previous version would
misread it. Additions keep the number."""


class OtherSchemaVersion(RedisError):
    """Another schema version is in use in this Redis."""


async def claim() -> None:
    """Write the schema version, or compare it. Raises `OtherSchemaVersion`, or `redis.RedisError`."""
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
