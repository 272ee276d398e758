"""What an event is for and where it goes, as text: the same in all three outputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import msgspec

from realtime.protocol.catalogue import ServerEvent


def summary(documented: object) -> str:
    """The docstring of a payload or a handler, in one line."""
    return " ".join((inspect.getdoc(documented) or "").split())


def namespace_list(names: Iterable[str]) -> str:
    """The names of namespaces, in the order of all outputs."""
    return ", ".join(sorted(names))


def default_rooms(event: ServerEvent) -> str:
    """The rooms that an event goes to, found by routing a payload whose every field holds its own name."""
    if event.rooms is None:
        return "–"
    payload = event.payload(**{field.name: field.name for field in msgspec.structs.fields(event.payload)})
    found = []
    for route in event.rooms(payload):
        audience, room = (event.default_namespaces, route) if isinstance(route, str) else route
        kind, _, field = room.partition(":")
        where = "" if audience == event.namespaces else f" ({namespace_list(audience)})"
        found.append(f"`{kind}:{{{field}}}`{where}")
    return ", ".join(found)
