"""The `data` of acknowledgements: the return types of handlers (`@client_event`)."""

# With `from __future__ import annotations`, Python 3.11 would treat every key as required.

from typing import NotRequired, TypedDict


class Resumption(TypedDict):
    """A room that the client has entered again."""

    recovered: bool
    """Whether every event after `offset` follows; if not, the client must refetch."""
    offset: str
    missed: int


class Refusal(TypedDict):
    """A room that the client may not enter, with an error code."""

    error: str


class Joined(TypedDict):
    """A room that the client has entered; `recovered` and `missed` come with `since`."""

    room: str
    offset: str
    recovered: NotRequired[bool]
    missed: NotRequired[int]


class Left(TypedDict):
    """A room that the client is not in."""

    room: str


class Refreshed(TypedDict):
    """The new token counts."""

    expires_at: str


class Resumed(TypedDict):
    """The outcome for each room."""

    rooms: dict[str, Resumption | Refusal]
