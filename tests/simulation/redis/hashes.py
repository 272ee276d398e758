"""Hashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.clock import Clock
from tests.simulation.redis.keys import Keys


class Hashes(Keys):
    """The commands on hashes."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.on_new_field: Callable[[bytes], None] = lambda key: None
        """Told of every HSETNX that set something."""

    def do_hset(self, key: bytes, *pairs: bytes) -> Any:
        value = self.make(key, dict)
        before = len(value)
        value.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(value) - before

    def do_hsetnx(self, key: bytes, field: bytes, content: bytes) -> Any:
        value = self.make(key, dict)
        if field in value:
            return 0
        value[field] = content
        self.on_new_field(key)
        return 1

    def do_hget(self, key: bytes, field: bytes) -> Any:
        return (self.get(key, dict) or {}).get(field)

    def do_hmget(self, key: bytes, *fields: bytes) -> Any:
        value = self.get(key, dict) or {}
        return [value.get(field) for field in fields]

    def do_hgetall(self, key: bytes) -> Any:
        return dict(self.get(key, dict) or {})

    def do_hkeys(self, key: bytes) -> Any:
        return list(self.get(key, dict) or {})

    def do_hvals(self, key: bytes) -> Any:
        return list((self.get(key, dict) or {}).values())

    def do_hlen(self, key: bytes) -> Any:
        return len(self.get(key, dict) or {})

    def do_hexists(self, key: bytes, field: bytes) -> Any:
        return int(field in (self.get(key, dict) or {}))

    def do_hincrby(self, key: bytes, field: bytes, by: bytes) -> Any:
        value = self.make(key, dict)
        value[field] = b"%d" % (int(value.get(field, 0)) + int(by))
        return int(value[field])

    def do_hdel(self, key: bytes, *fields: bytes) -> Any:
        value = self.get(key, dict) or {}
        gone = sum([value.pop(field, None) is not None for field in fields])
        self.drop_empty(key, value)
        return gone
