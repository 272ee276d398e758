"""The catalogue as a Markdown page: docs/events.md is its output, and a test fails when it is stale."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from realtime.protocol.catalogue import Catalogue, catalogue
from realtime.protocol.json_schema import DELIVERED, RETURNED, Form, Schema, schema
from realtime.protocol.namespaces import namespaces
from realtime.spec.descriptions import default_rooms, namespace_list, summary

_INTRODUCTION = """\
# Events

This page lists every event of the catalogue, and is generated (`make docs`). [protocol.md](protocol.md) specifies the
protocol, and [adding-an-event.md](adding-an-event.md) shows how to add an event of your own.

An *id* is a string of 1-64 characters out of `A-Z a-z 0-9 _ - . @ | + ~`; an integer is accepted and becomes a
string. A *group* is the name of a presence group: an id that may also contain spaces, and letters and digits of any
script (in Unicode's normalization form C).
A field with `?` may be left out. An event that a backbone publishes may have further fields in `data`, which pass
through unchanged.
"""

_OTHER_NAMES = {"array": "list", None: "any JSON"}


def events_markdown() -> str:
    """The whole page."""
    events = catalogue()
    return "\n".join(
        (
            _INTRODUCTION,
            *_section("Client to server", _client_rows(events)),
            *_section("Server to client: published by the backbone", _server_rows(events, bus=True)),
            *_section("Server to client: sent by the server itself", _server_rows(events, bus=False)),
            *_section("Control: backbone to socket server, over the bus only", _control_rows(events)),
        )
    )


def _section(title: str, rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    header, *body = rows
    yield f"## {title}\n"
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in body:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _client_rows(events: Catalogue) -> Iterator[tuple[str, ...]]:
    yield "event", "namespaces", "data", "data of the acknowledgement", "meaning"
    for name, event in sorted(events.client.items()):
        fields = _fields(event.payload), _fields(event.ack, RETURNED)
        yield f"`{name}`", namespace_list(event.namespaces), *fields, summary(event.handler)


def _server_rows(events: Catalogue, *, bus: bool) -> Iterator[tuple[str, ...]]:
    columns = sorted(namespaces())
    yield "event", *columns, *(("rooms (default)",) if bus else ()), "data", "meaning"
    for name, event in sorted(events.server.items()):
        if event.bus is bus:
            marks = ("✓" if namespace in event.namespaces else "–" for namespace in columns)
            rooms = (default_rooms(event),) if bus else ()
            yield f"`{name}`", *marks, *rooms, _fields(event.payload), summary(event.payload)


def _control_rows(events: Catalogue) -> Iterator[tuple[str, ...]]:
    yield "event", "data", "meaning"
    for name, event in sorted(events.control.items()):
        yield f"`{name}`", _fields(event.payload), summary(event.payload)


def _fields(kind: Any, form: Form = DELIVERED) -> str:
    found = schema(kind, form)
    alternatives = [_resolved(part, found) for part in found.get("anyOf", [found])]
    return " or ".join(map(_fields_of, alternatives))


def _resolved(part: Schema, root: Schema) -> Schema:
    """The schema of an object; one that contains itself is among the definitions."""
    if "$ref" not in part:
        return part
    found: Schema = root["definitions"][part["$ref"].rpartition("/")[2]]
    return found


def _fields_of(found: Schema) -> str:
    if "properties" not in found:
        return "any fields"
    fields = (_field(name, part, found["required"]) for name, part in found["properties"].items())
    return ", ".join(fields) or "–"


def _field(name: str, found: Schema, required: list[str]) -> str:
    default = f" = {found['default']!r}" if "default" in found else ""
    return f"`{name}{'' if name in required else '?'}` {type_of(found)}{default}"


def type_of(found: Schema) -> str:
    """What a JSON Schema describes, in a word or two."""
    match found:
        case {"title": title}:
            return str(title)
        case {"$ref": str(name)}:
            return name.rpartition("/")[2]
        case {"enum": values}:
            return " or ".join(
                f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`" for value in values
            )
        case {"anyOf": parts}:
            return " or ".join(dict.fromkeys(type_of(part) for part in parts))
    kind: str | None = found.get("type")
    return _OTHER_NAMES.get(kind) or str(kind)
