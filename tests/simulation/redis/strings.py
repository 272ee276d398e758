"""Strings."""

from __future__ import annotations

from typing import Any

from tests.simulation.redis.keys import Keys
from tests.simulation.redis.resp import OK


class Strings(Keys):
    """The commands on strings."""

    def do_get(self, key: bytes) -> Any:
        return self.get(key, bytes)

    def do_mget(self, *keys: bytes) -> Any:
        return [self.get(key, bytes) for key in keys]

    def do_set(self, key: bytes, value: bytes, *options: bytes) -> Any:
        before, expires, when = self.get(key, object), self.database.expires.get(key), None
        words = iter(options)
        flags = set()
        for word in words:
            match word.upper():
                case b"EX":
                    when = self.now + int(next(words))
                case b"PX":
                    when = self.now + int(next(words)) / 1000
                case b"EXAT":
                    when = float(next(words))
                case b"PXAT":
                    when = int(next(words)) / 1000
                case flag:
                    flags.add(flag)
        reply = before if b"GET" in flags else OK
        if (b"NX" in flags and before is not None) or (b"XX" in flags and before is None):
            return before if b"GET" in flags else None
        self.database.values[key] = value
        self.database.expires.pop(key, None)
        if when is not None:
            self.database.expires[key] = when
        elif b"KEEPTTL" in flags and expires is not None:
            self.database.expires[key] = expires
        return reply

    def do_incrby(self, key: bytes, by: bytes) -> Any:
        value = int(self.get(key, bytes) or 0) + int(by)
        self.database.values[key] = b"%d" % value
        return value

    def do_incr(self, key: bytes) -> Any:
        return self.do_incrby(key, b"1")
