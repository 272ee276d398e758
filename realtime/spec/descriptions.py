"""What an event is for and where it goes, as text: the same in all three outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from realtime.protocol.catalogue import ServerEvent


def summary(documented: object) -> str:
    """The docstring of a payload or a handler, in one line. That of a base class is about something else."""
    return " ".join((documented.__doc__ or "").split())


def namespace_list(names: Iterable[str]) -> str:
    """The names of namespaces, in the order of all outputs."""
    return ", ".join(sorted(names))


class _Field(str):
    """Stands for the value of a field, its parts and its items: its text is the field's path, in braces."""

    __slots__ = ()

    def __getattr__(self, name: str) -> _Field:
        return _Field(f"{self[:-1]}.{name}}}")

    def __iter__(self) -> Iterator[str]:
        yield self

    def __call__(self, *_: object) -> _Field:
        return self


def default_rooms(event: ServerEvent) -> str:
    """The rooms that an event goes to, found by routing a payload whose every field stands for its own name."""
    if event.rooms is None:
        return "–"
    names = [field.name for field in msgspec.structs.fields(event.payload)]
    try:
        routes = list(event.rooms(event.payload(**{name: _Field(f"{{{name}}}") for name in names})))
    except Exception:
        return "by its data"
    found = []
    for route in routes:
        audience, room = (event.default_namespaces, route) if isinstance(route, str) else route
        where = "" if audience == event.namespaces else f" ({namespace_list(audience)})"
        found.append(f"`{room}`{where}")
    return ", ".join(found)
