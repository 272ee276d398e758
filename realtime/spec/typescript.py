"""The catalogue as TypeScript: client/src/events.ts is its output, and a test fails when it is stale."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from realtime.protocol.catalogue import catalogue
from realtime.protocol.close_codes import REASONS
from realtime.protocol.envelope import ErrorCode
from realtime.protocol.payloads import Empty
from realtime.spec.descriptions import summary
from realtime.spec.json_schema import ACCEPTED_ID, DELIVERED_ID, NULL, Schema, schema

_HEAD = """\
// Generated from the server's catalogue by `make docs`. A product's own events are generated likewise
// (`python manage.py generateclient`), or come in by declaration merging:
//
//   declare module "realtime-sockets" {
//     interface ServerEvents { "ticket:opened": { ticket_id: string } }
//   }
"""

_PLAIN = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}


def events_typescript() -> str:
    """The whole module."""
    codes = " | ".join(f'"{code}"' for code in sorted(ErrorCode))
    return "\n".join(
        (
            _HEAD,
            "/** Server to client. What a backbone publishes may have further fields. */",
            *_block("interface ServerEvents ", _server_events(), "}\n"),
            "/** Client to server. */",
            *_block("interface ClientEvents ", _client_events(), "}\n"),
            "/** What the acknowledgement of a client's event says. */",
            *_block("interface Acks ", _acks(), "}\n"),
            f"export type ErrorCode = {codes};\n",
            "/** Why the server closes a connection. */",
            *_block("const CLOSE_REASONS = ", _close_reasons(), "} as const;\n"),
        )
    )


def _block(head: str, lines: Iterable[str], end: str) -> Iterator[str]:
    yield f"export {head}{{"
    yield from (f"  {line}" for line in lines)
    yield end


def _server_events() -> Iterator[str]:
    for name, event in sorted(catalogue().server.items()):
        data = {**schema(event.payload, DELIVERED_ID), "additionalProperties": event.bus}
        yield f"/** {summary(event.payload)} */"
        yield f'"{name}": {type_of(data)};'


def _client_events() -> Iterator[str]:
    for name, event in sorted(catalogue().client.items()):
        yield f"/** {summary(event.handler)} */"
        yield f'"{name}": {type_of(schema(event.payload, ACCEPTED_ID))};'


def _acks() -> Iterator[str]:
    for name, event in sorted(catalogue().client.items()):
        yield f'"{name}": {type_of(schema(event.ack or Empty, DELIVERED_ID))};'


def _close_reasons() -> Iterator[str]:
    for code, reason in sorted(REASONS.items()):
        yield f'{int(code)}: "{reason}",'


def type_of(found: Schema) -> str:
    """The TypeScript type of what a JSON Schema describes. `null` is left out: a field is there or it is not."""
    match found:
        case {"enum": values}:
            return " | ".join(map(json.dumps, values))
        case {"anyOf": parts}:
            return " | ".join(type_of(part) for part in parts if part != NULL)
        case {"type": "array"}:
            return f"({type_of(found.get('items', {}))})[]"
        case {"properties": _}:
            return _object(found)
        case {"type": "object"}:
            return f"Record<string, {type_of(found.get('additionalProperties', {}))}>"
    return _PLAIN.get(found.get("type", ""), "unknown")


def _object(found: Schema) -> str:
    members = [
        f"{name}{'' if name in found['required'] else '?'}: {type_of(part)}"
        for name, part in found["properties"].items()
    ]
    if found.get("additionalProperties"):
        members.append("[field: string]: unknown")
    return f"{{ {'; '.join(members)} }}" if members else "Record<string, never>"
