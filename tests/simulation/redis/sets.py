"""Sets: dictionaries, which have an order."""

from __future__ import annotations

from typing import Any

from tests.simulation.redis.keys import Keys


class Members(dict[bytes, None]):
    """A set."""


class Sets(Keys):
    """The commands on sets."""

    def do_sadd(self, key: bytes, *members: bytes) -> Any:
        value = self.make(key, Members)
        before = len(value)
        value.update(dict.fromkeys(members))
        return len(value) - before

    def do_srem(self, key: bytes, *members: bytes) -> Any:
        value = self.get(key, Members) or Members()
        gone = sum([value.pop(member, self) is None for member in members])
        self.drop_empty(key, value)
        return gone

    def do_spop(self, key: bytes, count: bytes = b"") -> Any:
        """The oldest, which is as good as any."""
        value = self.get(key, Members) or Members()
        popped = list(value)[: int(count or 1)]
        self.do_srem(key, *popped)
        return popped if count else (popped[0] if popped else None)

    def do_sscan(self, key: bytes, cursor: bytes, *options: bytes) -> Any:
        """All at once, as of every small set."""
        return [b"0", self.do_smembers(key)]

    def do_smembers(self, key: bytes) -> Any:
        return list(self.get(key, Members) or ())

    def do_scard(self, key: bytes) -> Any:
        return len(self.get(key, Members) or ())

    def do_sismember(self, key: bytes, member: bytes) -> Any:
        return int(member in (self.get(key, Members) or ()))
