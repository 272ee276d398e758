"""The layers under test, outlets that write down what they are given, and histories as a test writes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pytest

from realtime.layers import history
from realtime.layers.fanout import SLICE
from realtime.layers.history import append
from realtime.layers.listener import Listener
from realtime.layers.outlets import Ephemeral, payloads
from realtime.layers.room_layer import RoomChannelLayer
from realtime.protocol.publication import Draft, Publication, unpack
from realtime.redis.client import client
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.inprocess import PATIENCE, eventually


class Layers:
    """Layers as several instances have them."""

    def __init__(self) -> None:
        self._made: list[RoomChannelLayer] = []

    def make(self, **options: Any) -> Any:
        """A layer of its own, as another instance would have it."""
        self._made.append(RoomChannelLayer(**options))
        return self._made[-1]

    async def flush(self) -> None:
        for layer in self._made:
            await layer.flush()


async def receive(layer: Any, channel: str) -> dict[str, Any]:
    """The next message, which must come."""
    return await asyncio.wait_for(layer.receive(channel), PATIENCE)


async def receive_several(layer: Any, channel: str, count: int) -> list[Any]:
    """The numbers that the next messages carry."""
    return [(await receive(layer, channel))["n"] for _ in range(count)]


def message(n: Any = 1) -> dict[str, Any]:
    return {"type": "test.message", "n": n}


END = message("end")


async def members(layer: Any, count: int, *groups: str) -> list[str]:
    """Channels in all of these groups."""
    channels = [await layer.new_channel() for _ in range(count)]
    await asyncio.gather(*(layer.group_add(group, channel) for group in groups for channel in channels))
    return channels


def calls(server: EmbeddedRedis, command: str) -> int:
    with server.client() as redis:
        statistics: Any = redis.info("commandstats")
        return statistics.get(f"cmdstat_{command}", {}).get("calls", 0)


def subscriptions(server: EmbeddedRedis) -> list[int]:
    """Channels subscribed to, by connection."""
    with server.client() as redis:
        return sorted(int(found["sub"]) for found in redis.client_list() if int(found["sub"]))


class Ears:
    """An outlet that writes down what it is given."""

    is_behind = False

    def __init__(self, connection_id: str = "") -> None:
        self.connection_id = connection_id
        self.heard: list[Any] = []
        """What was written as the text it was published with, messages as they are, gaps as their room and reason."""
        self.positions: list[int] = []
        """Of the publications."""
        self.listeners: list[Listener] = []
        self.channel = ""

    @classmethod
    async def in_rooms(cls, layer: RoomChannelLayer, *groups: str) -> Self:
        """An outlet that listens to rooms."""
        ears = await cls().enter(layer, *groups)
        ears.start()
        return ears

    async def enter(self, layer: RoomChannelLayer, *groups: str) -> Self:
        """Enter rooms, paused."""
        self.channel = await layer.attach(self)
        self.listeners = await layer.enter(groups, self, self.channel)
        return self

    def start(self) -> None:
        for listener in self.listeners:
            listener.start()

    def leave(self, layer: RoomChannelLayer) -> None:
        """As a connection that ends."""
        for listener in self.listeners:
            layer.leave(listener, self.channel)
        layer.detach(self.channel)

    def write(self, frames: bytes) -> None:
        for payload in payloads(frames):
            text, at, position = payload.decode().partition("@")
            self.heard.append(text)
            if at:
                self.positions.append(int(position))
            elif '"offset":"' in text:  # from a bridge
                self.positions.append(int(json.loads(text)["offset"]))

    async def drained(self) -> None:
        pass

    def gap(self, room: str, reason: str) -> None:
        self.heard.append(Gap(room, reason))

    def message(self, message: dict[str, Any]) -> None:
        self.heard.append(message)

    async def hear(self, *expected: Any) -> None:
        """Wait until this, and only this, was heard."""
        with contextlib.suppress(AssertionError):
            await eventually(lambda: len(self.heard) >= len(expected))
        assert self.heard == list(expected)

    @property
    def gaps(self) -> list[Gap]:
        return [heard for heard in self.heard if isinstance(heard, Gap)]


@dataclass(frozen=True)
class Gap:
    """The client was told that publications are lost."""

    room: str
    reason: str


LOST = Gap("thread:42", "lost")


ROOM = "hub.thread.42"


def draft(text: Any, group: str = ROOM, exclude: str = "") -> Draft:
    """What is appended to a room, with a frame that `Ears` can read."""
    return Draft(rooms=[(group, f"{text}@".encode())], tail=b"", exclude=exclude)


async def publish(*texts: Any, group: str = ROOM) -> int:
    """Publish in a room as a bridge does; the last position."""
    found = await history.append([draft(text, group) for text in texts])
    return int(found[-1][0])


async def silently(*texts: Any, group: str = ROOM) -> list[int]:
    """Append what no subscription brings; the positions."""
    found = await history.append([draft(text, group) for text in texts], publish=False)
    return [int(position) for (position,) in found]


class Broken(Ears):
    """An outlet that fails so many times."""

    failures = 1
    has_failed = False

    def fail(self) -> None:
        self.has_failed = True

    def write(self, frames: bytes) -> None:
        self._fail()
        super().write(frames)

    def message(self, message: dict[str, Any]) -> None:
        self._fail()
        super().message(message)

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ZeroDivisionError


class Slow(Ears):
    """An outlet whose client does not read until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = asyncio.Event()

    async def drained(self) -> None:
        await self.may_go_on.wait()


async def keep_publishing(count: int, *, group: str = ROOM, at_once: int = 1) -> list[int]:
    """Publish the numbers below `count`, as fast as Redis takes them; all the positions."""
    positions = []
    for start in range(0, count, at_once):
        entries = [draft(n, group) for n in range(start, start + at_once)]
        positions += [int(found[0]) for found in await history.append(entries)]
    return positions


class Clock(Ears):
    """An outlet that notes in which turn of the loop it was served."""

    turn = 0

    def __init__(self) -> None:
        super().__init__()
        self.served: list[int] = []

    def write(self, frames: bytes) -> None:
        self.served.append(Clock.turn)
        super().write(frames)

    def message(self, message: dict[str, Any]) -> None:
        self.served.append(Clock.turn)
        super().message(message)


async def crowd(layer: Any, group: str, slices: int) -> list[Clock]:
    """Listeners that fill so many slices."""
    return [await Clock.in_rooms(layer, group) for _ in range(slices * SLICE)]


async def turns_until(condition: Callable[[], bool]) -> None:
    """Count the turns of the loop."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            Clock.turn += 1
            await asyncio.sleep(0)


def noted_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions above which a history is read."""
    after, reads = history.after, []

    async def noted(group: str, position: int, most: int, *rest: Any, **named: Any) -> Any:
        reads.append(position)
        return await after(group, position, most, *rest, **named)

    monkeypatch.setattr(history, "after", noted)
    return reads


def said(text: Any) -> Ephemeral:
    return Ephemeral("thread:42", str(text).encode(), "c" * 32)


def published(server: EmbeddedRedis) -> int:
    """How often anything was published so far."""
    with server.client() as redis:
        return redis.info("commandstats").get("cmdstat_publish", {"calls": 0})["calls"]


class Proxy:
    """Stands between us and Redis, and can go deaf without a word."""

    def __init__(self, server: EmbeddedRedis) -> None:
        self._server = server
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._connecting: list[asyncio.Future[Any]] = []
        self._subscribers: set[asyncio.StreamWriter] = set()
        self._deaf: set[asyncio.StreamWriter] = set()
        self.pings = 0
        self.swallows_connections = False
        """New connections are accepted and never answered."""
        self.accepted = 0

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for _ in range(
            3
        ):  # a connection that has just been accepted is served first, else no one would close it
            await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._connecting, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    def go_deaf(self) -> int:
        """Nothing more comes through for the listeners subscribed now; returns their number."""
        self._deaf |= self._subscribers
        return len(self._deaf)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        self._writers.append(writer)
        if self.swallows_connections:
            self._deaf.add(writer)
        connecting = asyncio.ensure_future(asyncio.open_unix_connection(str(self._server.socket)))
        connecting.add_done_callback(lambda done: done.cancelled() or self._writers.append(done.result()[1]))
        self._connecting.append(connecting)
        theirs, ours = await asyncio.shield(connecting)  # one that is cancelled may leave its socket open
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pass(reader, ours, writer), self._pass(theirs, writer, writer))
        writer.close()
        ours.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, who: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            self.pings += data.count(b"PING")
            if b"SUBSCRIBE" in data:
                self._subscribers.add(who)
            if who not in self._deaf:
                writer.write(data)
        writer.close()


HERE, THERE = "hub.thread.42", "portal.thread.42"
EVERYTHING = 10_000


def entry(
    name: str = "", *groups: str, source: str = "stream", id: str = "", exclude: str = "", body: bytes = b""
) -> Draft:
    """An entry that goes to `groups` (HERE, when none is named) and whose frame says `<name><body>@<position>`."""
    rooms = [(group, name.encode() + body + b"@") for group in groups or (HERE,)]
    return Draft(
        rooms=rooms,
        tail=b"!",
        source=source if name else "",
        entry=f"{name:0>20}",
        id=id,
        exclude=exclude,
    )


async def put(*entries: Draft, publish: bool = False, **options) -> list[list[int]]:
    """Append, to rooms that need not have been entered; the positions, 0 where an entry was left out."""
    appended = await append(entries, publish=publish, **options)
    return [[int(position or 0) for position in found] for found in appended[: len(entries)]]


async def one(name: str, *groups: str, **options) -> int:
    """Append an entry to HERE; its position there."""
    ((position, *_),) = await put(entry(name, *groups, **options))
    return position


async def several(count: int, *, start: int = 1, **options) -> list[int]:
    """Append entries one after the other, each a little later than the one before."""
    return [await one(str(number), **options) for number in range(start, start + count)]


async def logged(group: str = HERE) -> list[Publication]:
    """Everything that is in the log."""
    found: Any = await client().xrange(f"{history.base(group)}:log")
    return [unpack(fields[b"p"]) for _, fields in found]


async def names(group: str = HERE) -> list[str]:
    """What is in the log, by the names of its entries."""
    return names_of(await logged(group))


def names_of(publications: Sequence[Publication]) -> list[str]:
    return [publication.frame.partition(b"@")[0].decode() for publication in publications]


async def microseconds() -> int:
    seconds, micro = await client().time()
    return int(seconds) * 1_000_000 + int(micro)


def limited(settings, **limits) -> None:
    settings.REALTIME = {**settings.REALTIME, **limits}
