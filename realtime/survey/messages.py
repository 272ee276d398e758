"""What an operator asks the socket processes, and what one of them answers.

Nothing is kept for it: a process looks at what it holds when it is asked, and tells no more than is shown. Both sides
speak through the structs below; the functions are how a process finds its answer.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from functools import cache
from heapq import nlargest, nsmallest
from importlib import metadata
from typing import Protocol

import msgspec

from realtime.protocol.principal import Principal
from realtime.protocol.surrogates import whole_text
from realtime.redis.client import key
from realtime.tasks.supervision import report

MOST = 200
"""Rows an answer, whatever is asked for."""
SLICE = 500
"""Connections that are looked at between two looks at everything else."""
STALL_SECONDS = 0.02
"""The event loop is asked to come back after so long; what it takes beyond is its delay."""
EXPIRE_SECONDS = 10
"""An answer that nobody fetches."""
REMEMBER_SECONDS = 86400
"""Who answered is remembered for so long after anybody asked."""

Place = tuple[int, float, str]
"""Where a connection stands in the list; the list is in ascending order."""


class Connection(Protocol):
    """What can be said of a connection."""

    connection_id: str
    opened_at: float

    @property
    def rooms(self) -> Mapping[str, int]:
        """The rooms it is in, and up to which position the client has each."""

    @property
    def user(self) -> tuple[str, str]:
        """Namespace and user id."""

    @property
    def principal(self) -> Principal:
        """Whose it is."""

    @property
    def unsent(self) -> int | None:
        """Bytes that wait for a client that does not keep up; None where the server does not say."""


# --- Questions -------------------------------------------------------------------------------------


class AboutInstances(msgspec.Struct, frozen=True, tag=True):
    """How are you?"""


class AboutConnections(msgspec.Struct, frozen=True, tag=True):
    """Whom do you have? A page of them; what is left empty does not narrow it."""

    search: str = ""
    """Part of the user's id or name."""
    user_id: str = ""
    room: str = ""
    namespace: str = ""
    behind_first: bool = False
    """Those for whom most waits, not those who came last."""
    origin: Place | None = None
    """The page begins behind this place, or with `backwards` ends before it."""
    backwards: bool = False
    limit: int = 50


class AboutConnection(msgspec.Struct, frozen=True, tag=True):
    """What do you know of this one?"""

    connection_id: str


class AboutRooms(msgspec.Struct, frozen=True, tag=True):
    """Your largest rooms, or how large those named are."""

    search: str = ""
    """Part of the room's name."""
    namespace: str = ""
    personal: bool = False
    """Also `user:` rooms: there is one for everybody who is here."""
    named: list[tuple[str, str]] | None = None
    """Namespace and room."""
    limit: int = MOST


About = AboutInstances | AboutConnections | AboutConnection | AboutRooms


class Question(msgspec.Struct, frozen=True):
    """To every socket process, or to one."""

    id: str
    about: About
    instance: str = ""

    @property
    def reply_to(self) -> str:
        """The list that takes the answers."""
        return key("answers", self.id)


# --- Answers ---------------------------------------------------------------------------------------


class Instance(msgspec.Struct, frozen=True):
    """Who answers."""

    id: str
    host: str
    pid: int
    version: str
    started_at: float
    """Seconds since the epoch."""
    is_draining: bool = False
    silent_since: float | None = None
    """Written by who asked and got no answer."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """How a process is."""

    connections: dict[str, int]
    """By namespace."""
    rooms: int
    behind: int
    """Connections that do not keep up."""
    unsent: int
    """Bytes that wait for them."""
    cpu: float
    """Of one core, since the process was last asked: 1.0 is all of it."""
    memory: int
    """Resident bytes."""
    stall: float
    """Seconds that the event loop was late just now."""


class Row(msgspec.Struct, frozen=True):
    """A connection in the list."""

    connection_id: str
    namespace: str
    user_id: str
    name: str
    role: str
    opened_at: float
    """Seconds of Redis' clock."""
    unsent: int | None
    rooms: int
    threads: list[str]
    """A few of the rooms, the user's own one left out."""
    place: Place


class Page(msgspec.Struct, frozen=True, tag=True):
    """Connections: how many fit, how many stand before the page, and the page."""

    total: int
    before: int
    rows: list[Row]


class InRoom(msgspec.Struct, frozen=True):
    """A room that a connection is in, and where it stands there."""

    room: str
    position: int
    end: int
    """Where the room stands; both are microseconds of Redis' clock."""


class Detail(msgspec.Struct, frozen=True, tag=True):
    """One connection; None: it is not here."""

    row: Row | None = None
    groups: list[str] = []
    expires_at: float = 0.0
    rooms: list[InRoom] = []


class Rooms(msgspec.Struct, frozen=True, tag=True):
    """Rooms with the connections they have here: how many fit, and the largest."""

    total: int
    sizes: list[tuple[str, str, int]]
    """Namespace, room, connections."""


Said = Load | Page | Detail | Rooms


class Answer(msgspec.Struct, frozen=True):
    """One process's answer."""

    instance: Instance
    said: Said


# --- Finding it --------------------------------------------------------------------------------------


async def page(about: AboutConnections, everybody: Sequence[Connection]) -> Page:
    """A page of the connections that fit."""
    origin = None if about.origin is None else tuple(about.origin)
    limit = min(about.limit, MOST)
    total = before = 0
    nearest: list[tuple[Place, Connection]] = []
    """Those of the page, as far as they have been seen."""
    async for part in _slices(everybody):
        found = [(place(each, about.behind_first), each) for each in _fitting(about, part)]
        total += len(found)
        if origin is None:
            nearest = nsmallest(limit, nearest + found, key=_place)
        elif about.backwards:
            ahead = [each for each in found if each[0] < origin]
            before += len(ahead)
            nearest = nlargest(limit, nearest + ahead, key=_place)
        else:
            behind = [each for each in found if each[0] > origin]
            before += len(found) - len(behind)
            nearest = nsmallest(limit, nearest + behind, key=_place)
    if about.backwards:
        before -= len(nearest)
        nearest.reverse()
    return Page(total=total, before=before, rows=list(_rows(nearest)))


def _rows(found: Iterable[tuple[Place, Connection]]) -> Iterator[Row]:
    """A connection that can't be described is left out, and hides no other."""
    for at, each in found:
        try:
            yield row(each, at)
        except Exception:
            report("answer")


def _place(found: tuple[Place, Connection]) -> Place:
    return found[0]


async def _slices(everybody: Sequence[Connection]) -> AsyncIterator[Sequence[Connection]]:
    """In between everything else has its turn: a process with 10,000 connections must not stand still for a look."""
    for start in range(0, len(everybody), SLICE):
        yield everybody[start : start + SLICE]
        await asyncio.sleep(0)


def place(connection: Connection, behind_first: bool = False) -> Place:
    """Newest first, or those first for whom most waits."""
    waiting = (connection.unsent or 0) if behind_first else 0
    return -waiting, -connection.opened_at, connection.connection_id


def _fitting(about: AboutConnections, everybody: Iterable[Connection]) -> Iterator[Connection]:
    search = about.search.casefold()
    for connection in everybody:
        namespace, user_id = connection.user
        if (
            (not about.namespace or namespace == about.namespace)
            and (not about.user_id or user_id == about.user_id)
            and (not about.room or about.room in connection.rooms)
            and (not search or search in user_id.casefold() or search in connection.principal.name.casefold())
        ):
            yield connection


def row(connection: Connection, at: Place | None = None) -> Row:
    """What the list says of a connection."""
    namespace, user_id = connection.user
    return Row(
        connection_id=connection.connection_id,
        namespace=namespace,
        user_id=user_id,
        name=whole_text(connection.principal.name),
        role=connection.principal.role,
        opened_at=connection.opened_at,
        unsent=connection.unsent,
        rooms=len(connection.rooms),
        threads=[room for room in connection.rooms if not room.startswith("user:")][:3],
        place=at or place(connection),
    )


async def rooms(about: AboutRooms, everybody: Sequence[Connection]) -> Rooms:
    """Rooms and their connections, the largest first."""
    search = about.search.casefold()
    named = None if about.named is None else {(namespace, room) for namespace, room in about.named}
    sizes: Counter[tuple[str, str]] = Counter()
    async for part in _slices(everybody):
        for connection in part:
            namespace = connection.user[0]
            if not about.namespace or namespace == about.namespace:
                for room in connection.rooms:
                    if (about.personal or not room.startswith("user:")) and search in room.casefold():
                        sizes[namespace, room] += 1
    if named is not None:
        sizes = Counter({room: sizes[room] for room in named if room in sizes})
    most = len(sizes) if named is not None else min(about.limit, MOST)
    largest = nsmallest(most, sizes.items(), key=lambda each: (-each[1], each[0][1], each[0][0]))
    return Rooms(total=len(sizes), sizes=[(*room, size) for room, size in largest])


async def load(everybody: Sequence[Connection], *, cpu: float, stall: float) -> Load:
    """How this process is."""
    connections: Counter[str] = Counter()
    rooms: set[tuple[str, str]] = set()
    waiting: list[int] = []
    async for part in _slices(everybody):
        for connection in part:
            namespace = connection.user[0]
            connections[namespace] += 1
            rooms.update([(namespace, room) for room in connection.rooms])
            if unsent := connection.unsent:
                waiting.append(unsent)
    return Load(
        connections=dict(connections),
        rooms=len(rooms),
        behind=len(waiting),
        unsent=sum(waiting),
        cpu=cpu,
        memory=_memory(),
        stall=stall,
    )


class Meter:
    """The CPU time of this process between two questions."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> float:
        """Seconds of CPU a second, since the last time."""
        wall, cpu = time.monotonic(), time.process_time()
        used = (cpu - self._cpu) / max(wall - self._wall, 1e-3)
        self._wall, self._cpu = wall, cpu
        return used


def _memory() -> int:
    """Resident bytes; where the system does not say, the most there ever were."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  (a tenth of what pathlib takes)
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


@cache
def host() -> str:
    """The name of the machine, which in a container is the container's."""
    return platform.node()


@cache
def version() -> str:
    """Of this project, as it was installed."""
    try:
        return metadata.version("realtime-sockets")
    except metadata.PackageNotFoundError:
        return ""
