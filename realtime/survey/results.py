"""What one instance finds among its connections for a survey."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from heapq import nlargest, nsmallest
from operator import itemgetter
from typing import Protocol

from realtime.protocol.principal import Principal
from realtime.protocol.surrogates import whole_text
from realtime.survey.messages import MOST, AboutConnections, AboutRooms, Page, Place, Rooms, Row
from realtime.tasks.supervision import report

SLICE = 500
"""Connections that are read before other callbacks of the event loop have their turn."""


class Connection(Protocol):
    """What a survey reads of a connection."""

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
        """The user and the rights of the token."""

    @property
    def unsent(self) -> int | None:
        """Bytes that wait for a client that reads too slowly; None where the server does not tell."""


async def page(about: AboutConnections, connections: Sequence[Connection]) -> Page:
    """A page of the connections that match."""
    origin = None if about.origin is None else tuple(about.origin)
    limit = min(about.limit, MOST)
    before = 0
    namespaces: Counter[str] = Counter()
    nearest: list[tuple[Place, Connection]] = []
    """The rows of the page among the connections read so far."""
    async for part in slices(connections):
        found = [(place(each, about.behind_first), each) for each in _matching(about, part)]
        namespaces.update(each.user[0] for _, each in found)
        if origin is None:
            nearest = nsmallest(limit, nearest + found, key=itemgetter(0))
        elif about.backwards:
            ahead = [each for each in found if each[0] < origin]
            before += len(ahead)
            nearest = nlargest(limit, nearest + ahead, key=itemgetter(0))
        else:
            behind = [each for each in found if each[0] > origin]
            before += len(found) - len(behind)
            nearest = nsmallest(limit, nearest + behind, key=itemgetter(0))
    if about.backwards:
        before -= len(nearest)
        nearest.reverse()
    rows = list(_rows(nearest))
    return Page(total=namespaces.total(), before=before, rows=rows, namespaces=dict(namespaces))


def _rows(found: Iterable[tuple[Place, Connection]]) -> Iterator[Row]:
    """Rows; a connection that can't be described is left out."""
    for at, each in found:
        try:
            yield row(each, at)
        except Exception:
            report("answer")


async def slices(connections: Sequence[Connection]) -> AsyncIterator[Sequence[Connection]]:
    """The connections in parts, between which other callbacks run: 10,000 at once would hold them up."""
    for start in range(0, len(connections), SLICE):
        yield connections[start : start + SLICE]
        await asyncio.sleep(0)


def place(connection: Connection, behind_first: bool = False) -> Place:
    """The sort key: the newest first, or those first for which most bytes wait."""
    waiting = (connection.unsent or 0) if behind_first else 0
    return -waiting, -connection.opened_at, connection.connection_id


def _matching(about: AboutConnections, connections: Iterable[Connection]) -> Iterator[Connection]:
    search = about.search.casefold()
    for connection in connections:
        namespace, user_id = connection.user
        if (
            (not about.namespace or namespace == about.namespace)
            and (not about.user_id or user_id == about.user_id)
            and (not about.room or about.room in connection.rooms)
            and (not search or search in user_id.casefold() or search in connection.principal.name.casefold())
        ):
            yield connection


def row(connection: Connection, at: Place | None = None) -> Row:
    """A connection in the list."""
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


async def rooms(about: AboutRooms, connections: Sequence[Connection]) -> Rooms:
    """Rooms and their connections, the largest first."""
    search = about.search.casefold()
    named = None if about.named is None else {(namespace, room) for namespace, room in about.named}
    sizes: Counter[tuple[str, str]] = Counter()
    async for part in slices(connections):
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
