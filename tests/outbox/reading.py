"""What the bridge delivers of a stream: each message once, by its id, where it came first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

_MEMORY = Path("/dev/shm")


@contextmanager
def sqlite_url() -> Iterator[str]:
    """A file in memory, if there is such a folder: a disk makes each commit wait, and proves nothing more."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as directory:
        yield f"sqlite:///{directory}/db.sqlite3"


def once(client: redis.Redis, stream: str) -> list[dict[str, Any]]:
    """The messages of a stream without those whose id was there before."""
    found: dict[str, dict[str, Any]] = {}
    entries: Any = client.xrange(stream)
    for _, fields in entries:
        message = json.loads(fields[b"message"])
        found.setdefault(str(message["id"]), message)
    return list(found.values())
