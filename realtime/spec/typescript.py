"""The catalogue as TypeScript: client/src/events.ts is its output, and a test fails when it is stale."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from realtime.protocol.catalogue import catalogue
from realtime.protocol.close_codes import REASONS
from realtime.protocol.envelope import ErrorCode
from realtime.protocol.payloads import Id, Payload, PresenceGroup
from realtime.spec.markdown import summary

_HEAD = """\
// Generated from the server's catalogue by `make docs`. A product's own events are generated likewise
// (`python manage.py generateclient`), or come in by declaration merging:
//
//   declare module "realtime-sockets" {
//     interface ServerEvents { "ticket:opened": { ticket_id: string } }
//   }
"""

_PLAIN = {str: "string", float: "number", int: "number", bool: "boolean", msgspec.Raw: "unknown"}


def events_typescript() -> str:
    """The whole module."""
    events = catalogue()
    return "\n".join(
        (
            _HEAD,
            "/** Server to client. What a backbone publishes may have further fields. */",
            "export interface ServerEvents {",
            *(
                line
                for name, event in sorted(events.server.items())
                for line in _entry(name, event.payload, _object(event.payload, "string", open_=event.bus))
            ),
            "}\n",
            "/** Client to server. */",
            "export interface ClientEvents {",
            *(
                line
                for name, client_event in sorted(events.client.items())
                for line in _entry(
                    name, client_event.handler, _object(client_event.payload, "string | number", open_=False)
                )
            ),
            "}\n",
            "/** What the acknowledgement of a client's event says. */",
            "export interface Acks {",
            *(f'  "{name}": {_type(event.ack, "string")};' for name, event in sorted(events.client.items())),
            "}\n",
            "export type ErrorCode = " + " | ".join(f'"{code}"' for code in sorted(ErrorCode)) + ";\n",
            "/** Why the server closes a connection. */",
            "export const CLOSE_REASONS = {",
            *(f'  {int(code)}: "{reason}",' for code, reason in sorted(REASONS.items())),
            "} as const;",
            "",
        )
    )


def _entry(name: str, documented: object, type_: str) -> Iterator[str]:
    yield f"  /** {summary(documented)} */"
    yield f'  "{name}": {type_};'


def _object(payload: type[Payload], id_type: str, *, open_: bool) -> str:
    """A payload; one that is open may have fields that are not declared."""
    fields = [
        f"{field.encode_name}{'' if field.required else '?'}: {_type(field.type, id_type)}"
        for field in msgspec.structs.fields(payload)
    ]
    if open_:
        fields.append("[field: string]: unknown")
    return f"{{ {'; '.join(fields)} }}" if fields else "Record<string, never>"


def _type(kind: Any, id_type: str) -> str:  # noqa: PLR0911  (a table)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is None or kind is types.NoneType:
        return "Record<string, never>"
    if kind in {Id, PresenceGroup}:
        return id_type
    if origin is typing.Annotated:
        return _type(arguments[0], id_type)
    if origin is typing.Literal:
        return " | ".join(f'"{value}"' for value in arguments)
    if origin in {types.UnionType, typing.Union}:
        return " | ".join(_type(part, id_type) for part in arguments if part is not types.NoneType)
    if origin is list:
        return f"({_type(arguments[0], id_type)})[]"
    if origin is dict:
        return f"Record<string, {_type(arguments[1], id_type)}>"
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind)
        return f"{{ {'; '.join(_member(kind, name, hint, id_type) for name, hint in hints.items())} }}"
    return _PLAIN.get(kind, "unknown")


def _member(kind: Any, name: str, hint: Any, id_type: str) -> str:
    return f"{name}{'' if name in kind.__required_keys__ else '?'}: {_type(hint, id_type)}"
