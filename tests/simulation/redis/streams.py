"""Streams."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from tests.simulation.clock import Clock
from tests.simulation.redis.blocking import Blocking
from tests.simulation.redis.resp import Pairs, Refused, Status
from tests.simulation.redis.session import Session

Id = tuple[int, int]
LAST: Id = (1 << 64, 1 << 64)


class Entries:
    """A stream's."""

    def __init__(self) -> None:
        self.ids: list[Id] = []
        self.fields: dict[Id, list[bytes]] = {}
        self.last: Id = (0, 0)
        self.groups: set[bytes] = set()

    def add(self, id: Id, fields: list[bytes]) -> None:
        self.ids.append(id)
        self.fields[id] = fields
        self.last = id

    def between(self, first: Id, last: Id) -> list[Id]:
        return self.ids[bisect_left(self.ids, first) : bisect_right(self.ids, last)]

    def drop(self, number: int) -> int:
        for id in self.ids[:number]:
            del self.fields[id]
        del self.ids[:number]
        return number

    def __deepcopy__(self, memo: Any) -> Entries:
        entries = Entries()
        entries.ids, entries.fields, entries.last = list(self.ids), dict(self.fields), self.last
        entries.groups = set(self.groups)
        return entries


def _id(text: bytes, missing: int = 0) -> Id:
    milliseconds, _, sequence = text.partition(b"-")
    return int(milliseconds), int(sequence) if sequence else missing


def _id_text(id: Id) -> bytes:
    return b"%d-%d" % id


class Streams(Blocking):
    """The commands on streams."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.on_add: Callable[[bytes, Id, list[bytes]], None] = lambda key, id, fields: None
        """Told of everything that is added to a stream."""

    def do_xadd(self, key: bytes, *arguments: bytes) -> Any:
        words = deque(arguments)
        trims: list[bytes] = []
        while (word := words.popleft()).upper() in {b"MAXLEN", b"MINID", b"NOMKSTREAM", b"LIMIT"}:
            if word.upper() == b"NOMKSTREAM":
                if self.get(key, Entries) is None:
                    return None
                continue
            trims.append(word)
            if words[0] in {b"~", b"="}:
                trims.append(words.popleft())
            trims.append(words.popleft())
        entries = self.make(key, Entries)
        if word == b"*":
            id = max((int(self.now * 1000), 0), (entries.last[0], entries.last[1] + 1))
        elif word.endswith(b"-*"):
            milliseconds = int(word[:-2])
            id = (milliseconds, entries.last[1] + 1 if entries.last[0] == milliseconds else 0)
        else:
            id = _id(word)
        if id <= entries.last:
            raise Refused("ERR The ID specified in XADD is equal or smaller than the target stream top item")
        entries.add(id, list(words))
        self.on_add(key, id, list(words))
        if trims:
            self.do_xtrim(key, *trims)
        self.tell(key)
        return _id_text(id)

    def do_xtrim(self, key: bytes, how: bytes, *arguments: bytes) -> Any:
        if (entries := self.get(key, Entries)) is None:
            return 0
        words = [word for word in arguments if word not in {b"~", b"="}]
        if how.upper() == b"MAXLEN":
            return entries.drop(max(len(entries.ids) - int(words[0]), 0))
        return entries.drop(bisect_left(entries.ids, _id(words[0])))

    def do_xdel(self, key: bytes, *ids: bytes) -> Any:
        entries = self.get(key, Entries) or Entries()
        gone = [id for id in map(_id, ids) if entries.fields.pop(id, None) is not None]
        entries.ids = [id for id in entries.ids if id in entries.fields]
        return len(gone)

    def do_xgroup(self, what: bytes, key: bytes, group: bytes, *_: bytes) -> Any:
        groups = self.make(key, Entries).groups
        if what.upper() == b"DESTROY":
            groups.discard(group)
            return 1
        assert what.upper() == b"CREATE", what
        if group in groups:
            raise Refused("BUSYGROUP Consumer Group name already exists")
        groups.add(group)
        return Status(b"OK")

    def do_xsetid(self, key: bytes, id: bytes) -> Any:
        self.make(key, Entries).last = _id(id)
        return Status(b"OK")

    def do_xinfo(self, what: bytes, key: bytes) -> Any:
        assert what.upper() == b"STREAM", what
        return [b"last-generated-id", _id_text(self.make(key, Entries).last)]

    def do_xlen(self, key: bytes) -> Any:
        return len((self.get(key, Entries) or Entries()).ids)

    def do_xrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> Any:
        return self._range(key, first, last, options, reverse=False)

    def do_xrevrange(self, key: bytes, last: bytes, first: bytes, *options: bytes) -> Any:
        return self._range(key, first, last, options, reverse=True)

    def _range(
        self, key: bytes, first: bytes, last: bytes, options: Sequence[bytes], *, reverse: bool
    ) -> Any:
        entries = self.get(key, Entries) or Entries()
        start = (0, 0) if first == b"-" else _id(first.lstrip(b"("))
        end = LAST if last == b"+" else _id(last.lstrip(b"("), 1 << 64)
        ids = [
            id
            for id in entries.between(start, end)
            if not (first[:1] == b"(" and id == start) and not (last[:1] == b"(" and id == end)
        ]
        if reverse:
            ids.reverse()
        if options:
            ids = ids[: int(options[1])]
        return [[_id_text(id), entries.fields[id]] for id in ids]

    def session_xread(self, session: Session, *arguments: bytes) -> Any:
        words = deque(arguments)
        count, block = None, None
        while (word := words.popleft().upper()) != b"STREAMS":
            number = int(words.popleft())
            if word == b"COUNT":
                count = number
            else:
                block = number / 1000
        names = list(words)[: len(words) // 2]
        after = [
            (self.get(name, Entries) or Entries()).last if id == b"$" else _id(id)
            for name, id in zip(names, list(words)[len(names) :], strict=True)
        ]

        def read() -> Any:
            found = Pairs()
            for name, id in zip(names, after, strict=True):
                entries = self.get(name, Entries) or Entries()
                place = bisect_right(entries.ids, id)
                if ids := entries.ids[place : None if count is None else place + count]:
                    found[name] = [[_id_text(each), entries.fields[each]] for each in ids]
            return found or None

        return read() if block is None else self.wait(session, names, read, block)
