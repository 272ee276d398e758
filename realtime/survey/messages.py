"""The messages of a survey: what an operator asks all instances, and what one of them answers.

The names of the structs and of their fields are on the wire, where another version reads them.
"""

from __future__ import annotations

import msgspec

from realtime.redis.client import key

MOST = 200
"""Rows in an answer at most."""
STALL_SECONDS = 0.02
"""The pause by which an instance measures how late its event loop is."""
EXPIRE_SECONDS = 10
"""Seconds after which an answer that was not fetched is gone."""
REMEMBER_SECONDS = 86400
"""Seconds for which an instance is remembered after its last answer."""

Place = tuple[int, float, str]
"""The sort key of a connection in the list, which is in ascending order."""


# --- What is asked ---------------------------------------------------------------------------------


class AboutInstances(msgspec.Struct, frozen=True, tag=True):
    """Each instance, and its load."""


class AboutConnections(msgspec.Struct, frozen=True, tag=True):
    """A page of the connections that have all of these properties; an empty field does not count."""

    search: str = ""
    """Part of the user's id or name."""
    user_id: str = ""
    room: str = ""
    namespace: str = ""
    behind_first: bool = False
    """Sort by the bytes that wait for the client, instead of the newest first."""
    origin: Place | None = None
    """The page begins after this place, or with `backwards` ends before it."""
    backwards: bool = False
    limit: int = 50


class AboutConnection(msgspec.Struct, frozen=True, tag=True):
    """One connection in detail."""

    connection_id: str


class AboutRooms(msgspec.Struct, frozen=True, tag=True):
    """The largest rooms, or the sizes of named ones."""

    search: str = ""
    """Part of the room's name."""
    namespace: str = ""
    personal: bool = False
    """Also `user:` rooms, of which there is one for each user."""
    named: list[tuple[str, str]] | None = None
    """Namespace and room."""
    limit: int = MOST


About = AboutInstances | AboutConnections | AboutConnection | AboutRooms


class Survey(msgspec.Struct, frozen=True):
    """Sent to every instance. `instance` is the only one that answers, or empty: all do."""

    id: str
    about: About
    instance: str = ""

    @property
    def reply_to(self) -> str:
        """The list that takes the answers."""
        return key("answers", self.id)


# --- Answers ---------------------------------------------------------------------------------------


class Instance(msgspec.Struct, frozen=True):
    """An instance: an operating-system process that holds connections."""

    id: str
    host: str
    pid: int
    version: str
    started_at: float
    """Seconds since the epoch."""
    is_draining: bool = False
    silent_since: float | None = None
    """When a survey first got no answer from it; written by the survey."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """The load of an instance."""

    connections: dict[str, int]
    """By namespace."""
    rooms: int
    behind: int
    """Connections whose clients read too slowly."""
    unsent: int
    """Bytes that wait for them."""
    cpu: float
    """Share of one core since the previous survey: 1.0 is all of it."""
    memory: int
    """Resident bytes."""
    stall: float
    """Seconds by which the event loop was late just now."""


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
    """Up to three of the rooms, without the user's own."""
    place: Place


class Page(msgspec.Struct, frozen=True, tag=True):
    """A page of connections; `total` is how many match, `before` how many of them are on earlier pages."""

    total: int
    before: int
    rows: list[Row]
    namespaces: dict[str, int] = {}
    """How many match in each namespace; an instance of an older version does not say."""


class InRoom(msgspec.Struct, frozen=True):
    """A room that a connection is in, and up to where the client has it."""

    room: str
    position: int
    end: int
    """The position of the room's newest publication; both are microseconds of Redis' clock."""


class Detail(msgspec.Struct, frozen=True, tag=True):
    """One connection. `row` is None if this instance does not have it."""

    row: Row | None = None
    groups: list[str] = []
    expires_at: float = 0.0
    rooms: list[InRoom] = []


class Rooms(msgspec.Struct, frozen=True, tag=True):
    """The largest rooms, with their connections to this instance; `total` is how many match."""

    total: int
    sizes: list[tuple[str, str, int]]
    """Namespace, room, connections."""


Result = Load | Page | Detail | Rooms


class Answer(msgspec.Struct, frozen=True):
    """The answer of one instance."""

    instance: Instance
    result: Result = msgspec.field(name="said")
