"""Publications: what a room's history holds, each at a position, and what a channel carries to the instances."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

_POSITION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)

Target = tuple[str, str]
"""Namespace and room."""


class Publication(msgspec.Struct, frozen=True):
    """Something published in a room."""

    position: int
    previous: int
    exclude: str
    """A connection that does not get it; empty if all do."""
    frame: bytes
    """The client's text frame."""
    traceparent: str = ""
    """The trace that it is part of (`realtime.telemetry.tracing`)."""


class Draft(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A publication before it is appended, once to each of its rooms, where it gets a position."""

    rooms: Sequence[tuple[str, bytes]]
    """Group, and the frame before its offset."""
    tail: bytes
    """The frame after its offset, the same in every room."""
    source: str = ""
    entry: str = ""
    """The order of its entry within the source, as text that sorts."""
    id: str = ""
    exclude: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class After:
    """The publications after a position."""

    end: int
    missed: int
    publications: Sequence[Publication]


class Unrecoverable(Exception):
    """Not every publication after the position is known any more. `end` is the end of the room now."""

    def __init__(self, end: int) -> None:
        super().__init__(end)
        self.end = end


def parse_position(text: str) -> int | None:
    """A client's offset as a position; None when it cannot be one."""
    return int(text) if _POSITION.fullmatch(text) else None


def unpack(publication: bytes) -> Publication:
    """A publication as `append.lua` writes it into a room's history and its channel.

    Behind the connection that is left out, a `traceparent` may follow after a NUL.
    """
    start, others = 51, ("", "", "")
    if length := int(publication[45:51]):
        start += length
        others = publication[51:start].decode().partition("\0")
    exclude, _, traceparent = others
    return Publication(
        int(publication[17:33]), int(publication[1:17]), exclude, publication[start:], traceparent
    )
