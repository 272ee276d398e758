"""Lists."""

from __future__ import annotations

from typing import Any

from tests.simulation.redis.blocking import Blocking
from tests.simulation.redis.session import Session


class Lists(Blocking):
    """The commands on lists."""

    def do_rpush(self, key: bytes, *values: bytes) -> Any:
        value = self.make(key, list)
        value.extend(values)
        self.tell(key)
        return len(value)

    def do_lpush(self, key: bytes, *values: bytes) -> Any:
        value = self.make(key, list)
        value[:0] = reversed(values)
        self.tell(key)
        return len(value)

    def do_llen(self, key: bytes) -> Any:
        return len(self.get(key, list) or ())

    def do_lpop(self, key: bytes) -> Any:
        if not (value := self.get(key, list)):
            return None
        first = value.pop(0)
        self.drop_empty(key, value)
        return first

    def do_lrange(self, key: bytes, first: bytes, last: bytes) -> Any:
        return slice_of(self.get(key, list) or [], int(first), int(last))

    def session_blpop(self, session: Session, *arguments: bytes) -> Any:
        *keys, seconds = arguments

        def pop() -> Any:
            for key in keys:
                if (value := self.do_lpop(key)) is not None:
                    return [key, value]
            return None

        return self.wait(session, keys, pop, float(seconds))


def slice_of(values: list[Any], first: int, last: int) -> list[Any]:
    first = first if first >= 0 else max(len(values) + first, 0)
    last = last if last >= 0 else len(values) + last
    return values[first : last + 1]
