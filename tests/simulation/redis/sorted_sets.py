"""Sorted sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.simulation.redis.keys import Keys
from tests.simulation.redis.lists import slice_of
from tests.simulation.redis.resp import number_text


class Scores(dict[bytes, float]):
    """A sorted set."""


class SortedSets(Keys):
    """The commands on sorted sets."""

    def _ranked(self, key: bytes) -> list[tuple[bytes, float]]:
        return sorted((self.get(key, Scores) or {}).items(), key=lambda item: (item[1], item[0]))

    def do_zadd(self, key: bytes, *arguments: bytes) -> Any:
        flags: set[bytes] = set()
        while arguments[0].upper() in {b"NX", b"XX", b"GT", b"LT", b"CH"}:
            flags.add(arguments[0].upper())
            arguments = arguments[1:]
        value = self.make(key, Scores)
        added = changed = 0
        for score, member in zip(map(float, arguments[::2]), arguments[1::2], strict=True):
            old = value.get(member)
            if (
                (b"NX" in flags and old is not None)
                or (b"XX" in flags and old is None)
                or (b"GT" in flags and old is not None and score <= old)
                or (b"LT" in flags and old is not None and score >= old)
            ):
                continue
            added += old is None
            changed += old != score
            value[member] = score
        self.drop_empty(key, value)
        return changed if b"CH" in flags else added

    def do_zrem(self, key: bytes, *members: bytes) -> Any:
        value = self.get(key, Scores) or {}
        gone = sum([value.pop(member, None) is not None for member in members])
        self.drop_empty(key, value)
        return gone

    def do_zcard(self, key: bytes) -> Any:
        return len(self.get(key, Scores) or ())

    def do_zscore(self, key: bytes, member: bytes) -> Any:
        return (self.get(key, Scores) or {}).get(member)

    def do_zmscore(self, key: bytes, *members: bytes) -> Any:
        return [self.do_zscore(key, member) for member in members]

    def do_zrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> Any:
        words = [option.upper() for option in options]
        if b"BYSCORE" in words:
            assert b"REV" not in words
            return self.do_zrangebyscore(key, first, last, *[o for o in options if o.upper() != b"BYSCORE"])
        ranked = self._ranked(key)
        if b"REV" in words:
            ranked.reverse()
        return _members(slice_of(ranked, int(first), int(last)), b"WITHSCORES" in words)

    def do_zrevrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> Any:
        return self.do_zrange(key, first, last, b"REV", *options)

    def do_zrangebyscore(self, key: bytes, least: bytes, most: bytes, *options: bytes) -> Any:
        found = [item for item in self._ranked(key) if _within(item[1], least, most)]
        words = [option.upper() for option in options]
        if b"LIMIT" in words:
            place = words.index(b"LIMIT")
            start, number = int(options[place + 1]), int(options[place + 2])
            found = found[start:] if number < 0 else found[start : start + number]
        return _members(found, b"WITHSCORES" in words)

    def do_zcount(self, key: bytes, least: bytes, most: bytes) -> Any:
        return len(self.do_zrangebyscore(key, least, most))

    def do_zremrangebyscore(self, key: bytes, least: bytes, most: bytes) -> Any:
        found = self.do_zrangebyscore(key, least, most)
        return self.do_zrem(key, *found) if found else 0

    def do_zremrangebyrank(self, key: bytes, first: bytes, last: bytes) -> Any:
        found = self.do_zrange(key, first, last)
        return self.do_zrem(key, *found) if found else 0


def _members(found: Sequence[tuple[bytes, float]], with_scores: bool) -> list[Any]:
    if with_scores:
        return [part for member, score in found for part in (member, number_text(score))]
    return [member for member, _ in found]


def _within(score: float, least: bytes, most: bytes) -> bool:
    low, high = float(least.lstrip(b"(")), float(most.lstrip(b"("))
    above = score > low if least[:1] == b"(" else score >= low
    return above and (score < high if most[:1] == b"(" else score <= high)
