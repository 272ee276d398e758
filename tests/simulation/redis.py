"""A small Redis: what our code asks of one, its Lua scripts included, on simulated time.

Unlike a real one it lets us lose what was written last: start it again with an older copy of its database. A command
that it does not know ends the simulation: then it has to learn it.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from hashlib import sha1
from typing import Any

import msgspec
from lupa import lua51

from tests.simulation.clock import EPOCH, Clock, Event
from tests.simulation.network import Link

Id = tuple[int, int]
LAST: Id = (1 << 64, 1 << 64)


class Status(bytes):
    """A reply that says how it went."""


class Refused(Exception):
    """An error reply."""


class Pairs(dict[Any, Any]):
    """A mapping that is a list of pairs to who speaks RESP 2."""


class Push(list[Any]):
    """Sent without being asked for."""


OK = Status(b"OK")
_WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"


def encode(value: Any, protocol: int) -> bytes:
    """A reply as bytes (RESP 2 or 3)."""
    match value:
        case Status():
            return b"+%b\r\n" % value
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case int():
            return b":%d\r\n" % value
        case None:
            return b"_\r\n" if protocol == 3 else b"$-1\r\n"
        case float():
            text = _number(value)
            return b",%b\r\n" % text if protocol == 3 else encode(text, protocol)
        case Refused():
            return b"-%b\r\n" % str(value).encode()
        case Push():
            return (b">%d\r\n" if protocol == 3 else b"*%d\r\n") % len(value) + _all(value, protocol)
        case dict() if protocol == 3:
            return b"%%%d\r\n" % len(value) + _all(
                [part for pair in value.items() for part in pair], protocol
            )
        case Pairs():
            return encode([list(pair) for pair in value.items()], protocol)
        case dict():
            return encode([part for pair in value.items() for part in pair], protocol)
        case list() | tuple():
            return b"*%d\r\n" % len(value) + _all(value, protocol)
    raise TypeError(value)


def _all(values: Sequence[Any], protocol: int) -> bytes:
    return b"".join([encode(value, protocol) for value in values])


def _number(value: float) -> bytes:
    return b"%d" % value if value == int(value) else repr(value).encode()


class Parser:
    """Bytes as commands."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> Iterator[list[bytes]]:
        self._data += data
        while self._data and (command := self._next()) is not None:
            yield command

    def _next(self) -> list[bytes] | None:
        data = self._data
        end = data.find(b"\r\n")
        if end < 0:
            return None
        if data[:1] != b"*":
            self._data = data[end + 2 :]
            return data[:end].split()
        start, arguments = end + 2, []
        for _ in range(int(data[1:end])):
            end = data.find(b"\r\n", start)
            if end < 0:
                return None
            length = int(data[start + 1 : end])
            start = end + 2
            if len(data) < start + length + 2:
                return None
            arguments.append(data[start : start + length])
            start += length + 2
        self._data = data[start:]
        return arguments


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


class Session:
    """A connection, as the server has it."""

    def __init__(self, server: RedisServer, link: Link) -> None:
        self.server = server
        self.link = link
        self.protocol = 2
        self.channels: dict[bytes, None] = {}
        self.blocked: Blocked | None = None
        self.silent = 0
        """The next so many replies are not sent."""
        self._parser = Parser()
        self._commands: deque[list[bytes]] = deque()

    def receive(self, data: bytes) -> None:
        self._commands.extend(self._parser.feed(data))
        self.go_on()

    def go_on(self) -> None:
        while self._commands and self.blocked is None and not self.server.is_hanging:
            self._run(self._commands.popleft())

    def _run(self, command: list[bytes]) -> None:
        silent, self.silent = self.silent > 0, max(self.silent - 1, 0)
        try:
            reply = self.server.run(self, command)
        except Refused as error:
            reply = error
        if reply is not NOTHING and not silent:
            self.send(reply)

    def send(self, reply: Any) -> None:
        self.link.down.send(encode(reply, self.protocol))

    def lost(self) -> None:
        self.server.forget(self)


NOTHING = object()
"""No reply, or not yet."""


class Blocked:
    """A command that waits for news."""

    def __init__(
        self, session: Session, keys: Sequence[bytes], again: Callable[[], Any], timer: Event | None
    ) -> None:
        self.session = session
        self.keys = keys
        self.again = again
        self.timer = timer


class RedisServer:
    """One server."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.skew = 0.0
        self.is_up = True
        self.is_hanging = False
        self.database = Database()
        self.sessions: dict[Session, None] = {}
        self.channels: dict[bytes, dict[Session, None]] = {}
        self.on_add: Callable[[bytes, Id, list[bytes]], None] = lambda key, id, fields: None
        """Told of everything that is added to a stream."""
        self.on_new_field: Callable[[bytes], None] = lambda key: None
        """Told of every HSETNX that set something."""
        self.on_publish: Callable[[bytes, bytes], None] = lambda channel, payload: None
        self.on_subscribed: Callable[[Session, bytes], None] = lambda session, channel: None
        """Told when a subscription was confirmed."""
        self.on_push: Callable[[Session, bytes, bytes], None] = lambda session, channel, payload: None
        """Told of everything that was sent to a subscriber."""
        self.commands = 0
        self._waiting: dict[bytes, list[Blocked]] = {}
        self._scripts: dict[bytes, Any] = {}
        """What it knows; what was compiled is kept apart, which is no business of the one that restarts."""
        self._lua = Lua(self)

    # --- What the world does with it -------------------------------------------------------------

    def accept(self, link: Link) -> Session:
        session = Session(self, link)
        self.sessions[session] = None
        return session

    def forget(self, session: Session) -> None:
        self.sessions.pop(session, None)
        for channel in session.channels:
            self.channels[channel].pop(session, None)
        if session.blocked is not None:
            self._unblock(session.blocked)

    def stop(self, database: Database | None = None) -> None:
        """Its process ends: connections are refused until it starts again, with these keys (or none)."""
        self.is_up = False
        self.database = database or Database()
        for session in list(self.sessions):
            self.forget(session)
            session.link.close_from_server()
        self._scripts.clear()

    def start(self) -> None:
        """It is back."""
        self.is_up, self.is_hanging = True, False

    def hang(self) -> None:
        """It accepts what it is sent, and does nothing."""
        self.is_hanging = True

    def go_on(self) -> None:
        self.is_hanging = False
        for session in list(self.sessions):
            session.go_on()

    @property
    def now(self) -> float:
        return EPOCH + self.clock.now + self.skew

    # --- Commands --------------------------------------------------------------------------------

    def run(self, session: Session | None, command: Sequence[bytes]) -> Any:
        """Run a command, of no session for None; returns its reply. Raises `Refused`."""
        self.commands += 1
        name = command[0].decode().lower()
        if (of_session := getattr(self, f"session_{name}", None)) is not None and session is not None:
            return of_session(session, *command[1:])
        return getattr(self, f"do_{name}")(*command[1:])

    # Connections

    def session_hello(self, session: Session, protocol: bytes = b"2", *_: bytes) -> Any:
        session.protocol = int(protocol)
        return {b"server": b"redis", b"version": b"7.4.0", b"proto": session.protocol, b"id": 1, b"mode": b"standalone",
                b"role": b"master", b"modules": []}  # fmt: skip

    def session_client(self, session: Session, what: bytes, *arguments: bytes) -> Any:
        match what.upper(), *arguments:
            case b"REPLY", b"SKIP":
                session.silent = 1
                return NOTHING
            case b"REPLY", b"ON":
                session.silent = 0
                return OK
            case ((b"SETINFO" | b"SETNAME"), *_):
                return OK
        raise Refused("ERR unknown subcommand")

    def do_select(self, number: bytes) -> Any:
        return OK

    def session_ping(self, session: Session, *message: bytes) -> Any:
        if session.channels and session.protocol == 2:
            return [b"pong", message[0] if message else b""]
        return message[0] if message else Status(b"PONG")

    def do_ping(self) -> Any:
        return Status(b"PONG")

    def do_time(self) -> Any:
        seconds, rest = divmod(self.now, 1)
        return [b"%d" % seconds, b"%d" % int(rest * 1e6)]

    # Pub/Sub

    def session_subscribe(self, session: Session, *channels: bytes) -> Any:
        for channel in channels:
            session.channels[channel] = None
            self.channels.setdefault(channel, {})[session] = None
            session.send(Push([b"subscribe", channel, len(session.channels)]))
            self.on_subscribed(session, channel)
        return NOTHING

    def session_unsubscribe(self, session: Session, *channels: bytes) -> Any:
        for channel in channels or [*session.channels]:
            session.channels.pop(channel, None)
            self.channels.get(channel, {}).pop(session, None)
            session.send(Push([b"unsubscribe", channel, len(session.channels)]))
        return NOTHING

    def do_publish(self, channel: bytes, payload: bytes) -> Any:
        self.on_publish(channel, payload)
        sessions = self.channels.get(channel, {})
        for session in sessions:
            session.send(Push([b"message", channel, payload]))
            self.on_push(session, channel, payload)
        return len(sessions)

    def do_pubsub(self, what: bytes, *channels: bytes) -> Any:
        assert what.upper() == b"NUMSUB", what
        return [part for channel in channels for part in (channel, len(self.channels.get(channel, {})))]

    # Keys

    def _get(self, key: bytes, kind: type) -> Any:
        values, expires = self.database.values, self.database.expires
        if key in expires and expires[key] <= self.now:
            self._delete(key)
        value = values.get(key)
        if value is not None and not isinstance(value, kind):
            raise Refused(_WRONG_TYPE)
        return value

    def _make(self, key: bytes, kind: type) -> Any:
        value = self._get(key, kind)
        if value is None:
            value = self.database.values[key] = kind()
        return value

    def _delete(self, key: bytes) -> bool:
        self.database.expires.pop(key, None)
        return self.database.values.pop(key, None) is not None

    def _drop_empty(self, key: bytes, value: Any) -> None:
        if not value:
            self._delete(key)

    def do_exists(self, *keys: bytes) -> Any:
        return sum([self._get(key, object) is not None for key in keys])

    def do_del(self, *keys: bytes) -> Any:
        return sum([self._get(key, object) is not None and self._delete(key) for key in keys])

    do_unlink = do_del

    def do_flushall(self, *_: bytes) -> Any:
        self.database = Database()
        return OK

    def do_keys(self, pattern: bytes) -> Any:
        names = [key for key in list(self.database.values) if self._get(key, object) is not None]
        return [key for key in names if fnmatchcase(key.decode(), pattern.decode())]

    def _expire_at(self, key: bytes, when: float, flags: Sequence[bytes] = ()) -> Any:
        if self._get(key, object) is None:
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
        if self._get(key, object) is None:
            return -2
        when = self.database.expires.get(key)
        return -1 if when is None else int((when - self.now) * 1000)

    def do_ttl(self, key: bytes) -> Any:
        milliseconds = self.do_pttl(key)
        return milliseconds if milliseconds < 0 else milliseconds // 1000

    # Strings

    def do_get(self, key: bytes) -> Any:
        return self._get(key, bytes)

    def do_mget(self, *keys: bytes) -> Any:
        return [self._get(key, bytes) for key in keys]

    def do_set(self, key: bytes, value: bytes, *options: bytes) -> Any:
        before, expires, when = self._get(key, object), self.database.expires.get(key), None
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
        value = int(self._get(key, bytes) or 0) + int(by)
        self.database.values[key] = b"%d" % value
        return value

    def do_incr(self, key: bytes) -> Any:
        return self.do_incrby(key, b"1")

    # Hashes

    def do_hset(self, key: bytes, *pairs: bytes) -> Any:
        value = self._make(key, dict)
        before = len(value)
        value.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(value) - before

    def do_hsetnx(self, key: bytes, field: bytes, content: bytes) -> Any:
        value = self._make(key, dict)
        if field in value:
            return 0
        value[field] = content
        self.on_new_field(key)
        return 1

    def do_hget(self, key: bytes, field: bytes) -> Any:
        return (self._get(key, dict) or {}).get(field)

    def do_hmget(self, key: bytes, *fields: bytes) -> Any:
        value = self._get(key, dict) or {}
        return [value.get(field) for field in fields]

    def do_hgetall(self, key: bytes) -> Any:
        return dict(self._get(key, dict) or {})

    def do_hkeys(self, key: bytes) -> Any:
        return list(self._get(key, dict) or {})

    def do_hvals(self, key: bytes) -> Any:
        return list((self._get(key, dict) or {}).values())

    def do_hlen(self, key: bytes) -> Any:
        return len(self._get(key, dict) or {})

    def do_hexists(self, key: bytes, field: bytes) -> Any:
        return int(field in (self._get(key, dict) or {}))

    def do_hincrby(self, key: bytes, field: bytes, by: bytes) -> Any:
        value = self._make(key, dict)
        value[field] = b"%d" % (int(value.get(field, 0)) + int(by))
        return int(value[field])

    def do_hdel(self, key: bytes, *fields: bytes) -> Any:
        value = self._get(key, dict) or {}
        gone = sum([value.pop(field, None) is not None for field in fields])
        self._drop_empty(key, value)
        return gone

    # Sets: dictionaries, which have an order

    def do_sadd(self, key: bytes, *members: bytes) -> Any:
        value = self._make(key, Members)
        before = len(value)
        value.update(dict.fromkeys(members))
        return len(value) - before

    def do_srem(self, key: bytes, *members: bytes) -> Any:
        value = self._get(key, Members) or Members()
        gone = sum([value.pop(member, self) is None for member in members])
        self._drop_empty(key, value)
        return gone

    def do_spop(self, key: bytes, count: bytes = b"") -> Any:
        """The oldest, which is as good as any."""
        value = self._get(key, Members) or Members()
        popped = list(value)[: int(count or 1)]
        self.do_srem(key, *popped)
        return popped if count else (popped[0] if popped else None)

    def do_sscan(self, key: bytes, cursor: bytes, *options: bytes) -> Any:
        """All at once, as of every small set."""
        return [b"0", self.do_smembers(key)]

    def do_smembers(self, key: bytes) -> Any:
        return list(self._get(key, Members) or ())

    def do_scard(self, key: bytes) -> Any:
        return len(self._get(key, Members) or ())

    def do_sismember(self, key: bytes, member: bytes) -> Any:
        return int(member in (self._get(key, Members) or ()))

    # Sorted sets

    def _ranked(self, key: bytes) -> list[tuple[bytes, float]]:
        return sorted((self._get(key, Scores) or {}).items(), key=lambda item: (item[1], item[0]))

    def do_zadd(self, key: bytes, *arguments: bytes) -> Any:
        flags: set[bytes] = set()
        while arguments[0].upper() in {b"NX", b"XX", b"GT", b"LT", b"CH"}:
            flags.add(arguments[0].upper())
            arguments = arguments[1:]
        value = self._make(key, Scores)
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
        self._drop_empty(key, value)
        return changed if b"CH" in flags else added

    def do_zrem(self, key: bytes, *members: bytes) -> Any:
        value = self._get(key, Scores) or {}
        gone = sum([value.pop(member, None) is not None for member in members])
        self._drop_empty(key, value)
        return gone

    def do_zcard(self, key: bytes) -> Any:
        return len(self._get(key, Scores) or ())

    def do_zscore(self, key: bytes, member: bytes) -> Any:
        return (self._get(key, Scores) or {}).get(member)

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
        return _members(_slice(ranked, int(first), int(last)), b"WITHSCORES" in words)

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

    # Lists

    def do_rpush(self, key: bytes, *values: bytes) -> Any:
        value = self._make(key, list)
        value.extend(values)
        self._tell(key)
        return len(value)

    def do_lpush(self, key: bytes, *values: bytes) -> Any:
        value = self._make(key, list)
        value[:0] = reversed(values)
        self._tell(key)
        return len(value)

    def do_llen(self, key: bytes) -> Any:
        return len(self._get(key, list) or ())

    def do_lpop(self, key: bytes) -> Any:
        if not (value := self._get(key, list)):
            return None
        first = value.pop(0)
        self._drop_empty(key, value)
        return first

    def do_lrange(self, key: bytes, first: bytes, last: bytes) -> Any:
        return _slice(self._get(key, list) or [], int(first), int(last))

    def session_blpop(self, session: Session, *arguments: bytes) -> Any:
        *keys, seconds = arguments

        def pop() -> Any:
            for key in keys:
                if (value := self.do_lpop(key)) is not None:
                    return [key, value]
            return None

        return self._wait(session, keys, pop, float(seconds))

    # Streams

    def do_xadd(self, key: bytes, *arguments: bytes) -> Any:
        words = deque(arguments)
        trims: list[bytes] = []
        while (word := words.popleft()).upper() in {b"MAXLEN", b"MINID", b"NOMKSTREAM", b"LIMIT"}:
            if word.upper() == b"NOMKSTREAM":
                if self._get(key, Entries) is None:
                    return None
                continue
            trims.append(word)
            if words[0] in {b"~", b"="}:
                trims.append(words.popleft())
            trims.append(words.popleft())
        entries = self._make(key, Entries)
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
        self._tell(key)
        return _id_text(id)

    def do_xtrim(self, key: bytes, how: bytes, *arguments: bytes) -> Any:
        if (entries := self._get(key, Entries)) is None:
            return 0
        words = [word for word in arguments if word not in {b"~", b"="}]
        if how.upper() == b"MAXLEN":
            return entries.drop(max(len(entries.ids) - int(words[0]), 0))
        return entries.drop(bisect_left(entries.ids, _id(words[0])))

    def do_xdel(self, key: bytes, *ids: bytes) -> Any:
        entries = self._get(key, Entries) or Entries()
        gone = [id for id in map(_id, ids) if entries.fields.pop(id, None) is not None]
        entries.ids = [id for id in entries.ids if id in entries.fields]
        return len(gone)

    def do_xgroup(self, what: bytes, key: bytes, group: bytes, *_: bytes) -> Any:
        groups = self._make(key, Entries).groups
        if what.upper() == b"DESTROY":
            groups.discard(group)
            return 1
        assert what.upper() == b"CREATE", what
        if group in groups:
            raise Refused("BUSYGROUP Consumer Group name already exists")
        groups.add(group)
        return Status(b"OK")

    def do_xsetid(self, key: bytes, id: bytes) -> Any:
        self._make(key, Entries).last = _id(id)
        return Status(b"OK")

    def do_xinfo(self, what: bytes, key: bytes) -> Any:
        assert what.upper() == b"STREAM", what
        return [b"last-generated-id", _id_text(self._make(key, Entries).last)]

    def do_xlen(self, key: bytes) -> Any:
        return len((self._get(key, Entries) or Entries()).ids)

    def do_xrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> Any:
        return self._range(key, first, last, options, reverse=False)

    def do_xrevrange(self, key: bytes, last: bytes, first: bytes, *options: bytes) -> Any:
        return self._range(key, first, last, options, reverse=True)

    def _range(
        self, key: bytes, first: bytes, last: bytes, options: Sequence[bytes], *, reverse: bool
    ) -> Any:
        entries = self._get(key, Entries) or Entries()
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
            (self._get(name, Entries) or Entries()).last if id == b"$" else _id(id)
            for name, id in zip(names, list(words)[len(names) :], strict=True)
        ]

        def read() -> Any:
            found = Pairs()
            for name, id in zip(names, after, strict=True):
                entries = self._get(name, Entries) or Entries()
                place = bisect_right(entries.ids, id)
                if ids := entries.ids[place : None if count is None else place + count]:
                    found[name] = [[_id_text(each), entries.fields[each]] for each in ids]
            return found or None

        return read() if block is None else self._wait(session, names, read, block)

    # Waiting

    def _wait(self, session: Session, keys: Sequence[bytes], again: Callable[[], Any], seconds: float) -> Any:
        if (reply := again()) is not None:
            return reply
        blocked = session.blocked = Blocked(session, keys, again, None)
        if seconds:
            blocked.timer = self.clock.after(seconds, self._give_up, blocked)
        for key in keys:
            self._waiting.setdefault(key, []).append(blocked)
        return NOTHING

    def _unblock(self, blocked: Blocked) -> None:
        blocked.session.blocked = None
        if blocked.timer is not None:
            blocked.timer.cancel()
        for key in blocked.keys:
            if blocked in self._waiting.get(key, ()):
                self._waiting[key].remove(blocked)

    def _give_up(self, blocked: Blocked) -> None:
        self._answer(blocked, None)

    def _answer(self, blocked: Blocked, reply: Any) -> None:
        self._unblock(blocked)
        blocked.session.send(reply)
        blocked.session.go_on()

    def _tell(self, key: bytes) -> None:
        """There is news for who waits for this key, once the command (or script) that runs is over."""
        if self._waiting.get(key):
            self.clock.after(0.0, self._look, key)

    def _look(self, key: bytes) -> None:
        for blocked in list(self._waiting.get(key, ())):
            if blocked.session.blocked is blocked and (reply := blocked.again()) is not None:
                self._answer(blocked, reply)

    # Scripts

    def do_script(self, what: bytes, source: bytes) -> Any:
        assert what.upper() == b"LOAD", what
        sha = sha1(source, usedforsecurity=False).hexdigest().encode()
        self._scripts[sha] = self._lua.compile(sha, source)
        return sha

    def do_evalsha(self, sha: bytes, number: bytes, *arguments: bytes) -> Any:
        if (script := self._scripts.get(sha.lower())) is None:
            raise Refused("NOSCRIPT No matching script. Please use EVAL.")
        return self._lua.run(script, arguments[: int(number)], arguments[int(number) :])

    def do_eval(self, source: bytes, number: bytes, *arguments: bytes) -> Any:
        return self.do_evalsha(self.do_script(b"LOAD", source), number, *arguments)


class Members(dict[bytes, None]):
    """A set."""


class Scores(dict[bytes, float]):
    """A sorted set."""


def _members(found: Sequence[tuple[bytes, float]], with_scores: bool) -> list[Any]:
    if with_scores:
        return [part for member, score in found for part in (member, _number(score))]
    return [member for member, _ in found]


def _slice(values: list[Any], first: int, last: int) -> list[Any]:
    first = first if first >= 0 else max(len(values) + first, 0)
    last = last if last >= 0 else len(values) + last
    return values[first : last + 1]


def _within(score: float, least: bytes, most: bytes) -> bool:
    low, high = float(least.lstrip(b"(")), float(most.lstrip(b"("))
    above = score > low if least[:1] == b"(" else score >= low
    return above and (score < high if most[:1] == b"(" else score <= high)


class Lua:
    """Runs scripts as Redis does: Lua 5.1, `redis.call`, `cjson`."""

    _compiled: dict[bytes, Any] = {}
    runtime: Any = None
    _server: RedisServer

    def __init__(self, server: RedisServer) -> None:
        # One runtime for all servers of this process: its scripts run one after the other.
        self.server = server
        if Lua.runtime is None:
            Lua.runtime = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=False)
            self._table = Lua.runtime.table_from
            names = Lua.runtime.globals()
            names[b"redis"] = self._table(
                {
                    b"call": self._call,
                    b"pcall": self._pcall,
                    b"error_reply": lambda text: self._table({b"err": text}),
                    b"status_reply": lambda text: self._table({b"ok": text}),
                    b"sha1hex": lambda text: sha1(text, usedforsecurity=False).hexdigest().encode(),
                    b"log": lambda *_: None,
                    b"LOG_WARNING": 3,
                    b"replicate_commands": lambda: True,
                }
            )
            names[b"cjson"] = self._table({b"decode": self._decode, b"encode": self._encode, b"null": None})
        self._table = Lua.runtime.table_from

    def compile(self, sha: bytes, source: bytes) -> Any:
        if sha not in Lua._compiled:
            try:
                Lua._compiled[sha] = Lua.runtime.eval(b"function(KEYS, ARGV)\n" + source + b"\nend")
            except lua51.LuaError as error:
                raise Refused(f"ERR Error compiling script {error}") from error
        return Lua._compiled[sha]

    def run(self, script: Any, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        Lua._server = self.server
        try:
            return self._reply(script(self._table(keys), self._table(arguments)))
        except lua51.LuaError as error:
            raise Refused(f"ERR {error}") from error

    def _reply(self, value: Any) -> Any:
        if value is None or value is False:
            return None
        if value is True:
            return 1
        if isinstance(value, bytes):
            return value
        if isinstance(value, int | float):
            return int(value)
        if value[b"err"] is not None:
            return Refused(value[b"err"].decode())
        if value[b"ok"] is not None:
            return Status(value[b"ok"])
        return [self._reply(value[place]) for place in range(1, len(value) + 1)]

    @staticmethod
    def _call(name: bytes, *arguments: Any) -> Any:
        words = [name, *[each if isinstance(each, bytes) else _lua_number(each) for each in arguments]]
        return _to_lua(Lua._server.run(None, words))

    @staticmethod
    def _pcall(name: bytes, *arguments: Any) -> Any:
        try:
            return Lua._call(name, *arguments)
        except Refused as error:
            return Lua.runtime.table_from({b"err": str(error).encode()})

    @staticmethod
    def _decode(text: bytes) -> Any:
        return _json_to_lua(msgspec.json.decode(text))

    @staticmethod
    def _encode(value: Any) -> bytes:
        return msgspec.json.encode(_json_of(value))


def _lua_number(value: float) -> bytes:
    return b"%d" % value if isinstance(value, int) else (b"%.17g" % value)


def _to_lua(reply: Any) -> Any:
    match reply:
        case Status():
            return Lua.runtime.table_from({b"ok": bytes(reply)})
        case bytes() | int():
            return reply
        case None:
            return False
        case float():
            return _number(reply)
        case dict():
            return _to_lua([part for pair in reply.items() for part in pair])
    return Lua.runtime.table_from([_to_lua(each) for each in reply])


def _json_to_lua(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return Lua.runtime.table_from([_json_to_lua(each) for each in value])
    if isinstance(value, dict):
        return Lua.runtime.table_from({name.encode(): _json_to_lua(each) for name, each in value.items()})
    return value


def _json_of(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if value is None or isinstance(value, bool | int | float):
        return value
    pairs = list(value.items())
    if pairs and all(isinstance(name, int) for name, _ in pairs):
        return [_json_of(value[place]) for place in range(1, len(value) + 1)]
    return {name.decode(): _json_of(each) for name, each in pairs}
