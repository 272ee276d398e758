"""Keys, whatever they hold: until when, and the commands on them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from tests.simulation.clock import EPOCH, Clock
from tests.simulation.redis.resp import OK, Refused

_WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"


class Database:
    """Keys, values, and when they expire."""

    def __init__(self) -> None:
        self.values: dict[bytes, Any] = {}
        self.expires: dict[bytes, float] = {}

    def copy(self) -> Database:
        other = Database()
        other.values = {
            key: value if isinstance(value, bytes) else copy.deepcopy(value)
            for key, value in self.values.items()
        }
        other.expires = dict(self.expires)
        return other


class Keys:
    """The keys of a server, for the kinds of values that it knows."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.skew = 0.0
        self.database = Database()

    @property
    def now(self) -> float:
        return EPOCH + self.clock.now + self.skew

    def get(self, key: bytes, kind: type) -> Any:
        values, expires = self.database.values, self.database.expires
        if key in expires and expires[key] <= self.now:
            self.delete(key)
        value = values.get(key)
        if value is not None and not isinstance(value, kind):
            raise Refused(_WRONG_TYPE)
        return value

    def make(self, key: bytes, kind: type) -> Any:
        value = self.get(key, kind)
        if value is None:
            value = self.database.values[key] = kind()
        return value

    def delete(self, key: bytes) -> bool:
        self.database.expires.pop(key, None)
        return self.database.values.pop(key, None) is not None

    def drop_empty(self, key: bytes, value: Any) -> None:
        if not value:
            self.delete(key)

    # --- Commands --------------------------------------------------------------------------------

    def do_exists(self, *keys: bytes) -> Any:
        return sum([self.get(key, object) is not None for key in keys])

    def do_del(self, *keys: bytes) -> Any:
        return sum([self.get(key, object) is not None and self.delete(key) for key in keys])

    do_unlink = do_del

    def do_flushall(self, *_: bytes) -> Any:
        self.database = Database()
        return OK

    def do_keys(self, pattern: bytes) -> Any:
        names = [key for key in list(self.database.values) if self.get(key, object) is not None]
        return [key for key in names if fnmatchcase(key.decode(), pattern.decode())]

    def _expire_at(self, key: bytes, when: float, flags: Sequence[bytes] = ()) -> Any:
        if self.get(key, object) is None:
            return 0
        current = self.database.expires.get(key)
        options = {flag.upper() for flag in flags}
        if b"NX" in options and current is not None:
            return 0
        if b"XX" in options and current is None:
            return 0
        if b"GT" in options and (current is None or when <= current):
            return 0
        if b"LT" in options and current is not None and when >= current:
            return 0
        self.database.expires[key] = when
        return 1

    def do_expire(self, key: bytes, seconds: bytes, *flags: bytes) -> Any:
        return self._expire_at(key, self.now + int(seconds), flags)

    def do_pexpire(self, key: bytes, milliseconds: bytes, *flags: bytes) -> Any:
        return self._expire_at(key, self.now + int(milliseconds) / 1000, flags)

    def do_expireat(self, key: bytes, when: bytes, *flags: bytes) -> Any:
        return self._expire_at(key, int(when), flags)

    def do_pexpireat(self, key: bytes, when: bytes, *flags: bytes) -> Any:
        return self._expire_at(key, int(when) / 1000, flags)

    def do_persist(self, key: bytes) -> Any:
        return int(self.database.expires.pop(key, None) is not None)

    def do_pttl(self, key: bytes) -> Any:
        if self.get(key, object) is None:
            return -2
        when = self.database.expires.get(key)
        return -1 if when is None else int((when - self.now) * 1000)

    def do_ttl(self, key: bytes) -> Any:
        milliseconds = self.do_pttl(key)
        return milliseconds if milliseconds < 0 else milliseconds // 1000
