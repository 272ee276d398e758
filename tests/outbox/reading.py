"""What the bridge delivers of a stream: each message once, by its id, where it came first."""

from __future__ import annotations

import json
from typing import Any

import redis


def once(client: redis.Redis, stream: str) -> list[dict[str, Any]]:
    """The messages of a stream without those whose id was there before."""
    found: dict[str, dict[str, Any]] = {}
    entries: Any = client.xrange(stream)
    for _, fields in entries:
        message = json.loads(fields[b"message"])
        found.setdefault(str(message["id"]), message)
    return list(found.values())
