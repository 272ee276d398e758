"""What acknowledgements say, event by event: the return types of handlers (`@client_event`)."""

# Without `from __future__ import annotations`: Python 3.11 would take every key for required.

from typing import NotRequired, TypedDict


class Resumption(TypedDict):
    """How somebody who was in a room before came back into it."""

    recovered: bool
    """Whether everything after `offset` follows; else it must be fetched anew."""
    offset: str
    missed: int


class Refusal(TypedDict):
    """Why not: an error code."""

    error: str


class Joined(TypedDict):
    """In a thread; with `since` also what of it was missed."""

    room: str
    offset: str
    recovered: NotRequired[bool]
    missed: NotRequired[int]


class Left(TypedDict):
    """Not in a thread."""

    room: str


class Refreshed(TypedDict):
    """The token is taken."""

    expires_at: str


class Resumed(TypedDict):
    """Room by room."""

    rooms: dict[str, Resumption | Refusal]
