"""The catalogue as an AsyncAPI 3 document: served at `/asyncapi.json`, printed by `generateasyncapi`.

It describes the socket server, which *receives* what clients and backbones send and *sends* what clients get.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from realtime.auth.credentials import BEARER_SUBPROTOCOL, SUBPROTOCOL
from realtime.bridge.bus_entry import CHANNEL
from realtime.conf import cached, conf
from realtime.protocol import bus_message
from realtime.protocol.catalogue import (
    Catalogue,
    ClientEvent,
    ControlEvent,
    ServerEvent,
    StreamEntry,
    catalogue,
)
from realtime.protocol.close_codes import REASONS, STOP
from realtime.protocol.envelope import ErrorCode, FrameId
from realtime.protocol.handshake_errors import STATUSES
from realtime.protocol.json_schema import DELIVERED, Schema, schema
from realtime.protocol.namespaces import namespaces
from realtime.protocol.payloads import Payload
from realtime.redis.client import key
from realtime.spec.descriptions import default_rooms, namespace_list, summary
from realtime.spec.schemas import DocumentSchemas

_DESCRIPTION = """\
Events over WebSocket: each frame is one JSON object, `{"event", "data"}`. A client's frame with an `id` gets exactly
one `ack` or `error` with that `id`. A frame of a room carries `room`, and `offset` if the event can be recovered after
a reconnect. `x-refusals` lists the error codes of a refused handshake with their HTTP status, `x-close-codes` why a
connection is closed and whether the client should connect again.
"""


@cached()
def asyncapi_json() -> bytes:
    """The document of this installation, a product's own events included."""
    return msgspec.json.encode(document(), enc_hook=str)


def document() -> dict[str, Any]:
    """The document, before it is encoded as JSON."""
    events = catalogue()
    schemas = DocumentSchemas("#/components/schemas/")
    messages = _all_messages(events, schemas)
    channels = {
        **{namespace: _namespace(events, namespace) for namespace in sorted(namespaces())},
        **_redis_channels([name for name in messages if name.startswith("bus.")], events.streams),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "realtime-sockets",
            "version": SUBPROTOCOL.removeprefix("realtime.v"),
            "description": _DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": _servers(),
        "channels": channels,
        "operations": {**_operations_of_clients(events), **_operations_on_redis(channels, events.streams)},
        "components": {
            "messages": messages,
            "schemas": schemas.definitions,
            "securitySchemes": _credentials(),
        },
        "x-refusals": {str(code): status for code, status in STATUSES.items()},
        "x-close-codes": {
            str(int(code)): {"reason": reason, "reconnect": code not in STOP}
            for code, reason in REASONS.items()
        },
    }


# --- Messages --------------------------------------------------------------------------------------


def _all_messages(events: Catalogue, schemas: DocumentSchemas) -> dict[str, Any]:
    to_clients = [event for event in _sorted(events.server) if event.name != "ack"]
    published = [event for event in _sorted(events.server) if event.bus]
    return {
        **{f"client.{_name(event)}": _from_client(event, schemas) for event in _sorted(events.client)},
        **{f"ack.{_name(event)}": _ack(event, schemas) for event in _sorted(events.client)},
        **{f"server.{_name(event)}": _to_clients(event, schemas) for event in to_clients},
        **{f"bus.{_name(event)}": _on_bus(event, schemas) for event in published},
        **{f"bus.{_name(event)}": _control(event, schemas) for event in _sorted(events.control)},
        **{
            entry.field: _message(entry.field, summary(entry.payload), schemas.delivered(entry.payload))
            for entry in events.streams.values()
        },
    }


def _from_client(event: ClientEvent, schemas: DocumentSchemas) -> dict[str, Any]:
    data = schemas.accepted(event.payload)
    frame = _frame(event.name, data, requires=_required(event.payload), id=_FRAME_ID)
    return _message(event.name, summary(event.handler), frame)


def _ack(event: ClientEvent, schemas: DocumentSchemas) -> dict[str, Any]:
    frame = _frame("ack", schemas.returned(event.ack), requires=["data", "id"], id=_FRAME_ID)
    return _message("ack", f"`{event.name}` took effect.", frame)


def _to_clients(event: ServerEvent, schemas: DocumentSchemas) -> dict[str, Any]:
    data = schemas.delivered(event.payload)
    if event.name == "error":
        data["properties"] |= {"code": {"enum": sorted(ErrorCode)}, "retry_after": {"type": "number"}}
        frame = _frame(event.name, data, requires=["data"], id=_FRAME_ID)
    else:
        requires = ["data", "room", "offset"] if event.bus else ["data"]
        frame = _frame(event.name, data, requires=requires, room=_TEXT, offset=_OFFSET)
    return _message(event.name, summary(event.payload), frame)


def _on_bus(event: ServerEvent, schemas: DocumentSchemas) -> dict[str, Any]:
    text = f"{summary(event.payload)} Default rooms: {default_rooms(event)}."
    keys = ("id", "rooms", "namespaces", "except")
    return _message(event.name, text, _bus_payload(event.name, event.payload, keys, schemas))


def _control(event: ControlEvent, schemas: DocumentSchemas) -> dict[str, Any]:
    payload = _bus_payload(event.name, event.payload, ("id",), schemas)
    return _message(event.name, summary(event.payload), payload)


def _bus_payload(name: str, payload: type[Payload], keys: Iterable[str], schemas: DocumentSchemas) -> Schema:
    message = schemas.accepted(bus_message.BusMessageJSON)["properties"]
    more = {key: message[key] for key in keys}
    return _frame(name, schemas.accepted(payload), requires=_required(payload), **more)


def _required(payload: type[Payload]) -> list[str]:
    """The keys of a frame besides its event: `data` may be left out if no field of it is required."""
    return ["data"] if any(field.required for field in msgspec.structs.fields(payload)) else []


def _frame(event: str, data: Schema, *, requires: Iterable[str], **more: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {"event": {"const": event}, "data": data, **more},
        "required": ["event", *requires],
    }


def _message(name: str, text: str, payload: Schema) -> dict[str, Any]:
    return {"name": name, "title": name, "summary": text, "payload": payload}


_TEXT: Schema = {"type": "string"}
_OFFSET: Schema = {"type": "string", "minLength": 1, "maxLength": 64}
_FRAME_ID: Schema = schema(FrameId, DELIVERED)


# --- Channels and operations -------------------------------------------------------------------------


def _namespace(events: Catalogue, namespace: str) -> dict[str, Any]:
    query: dict[str, Schema] = {"resume": {"const": "1"}}
    if conf().query_token:
        query["token"] = _TEXT
    return {
        "address": f"/{namespace}/",
        "title": namespace,
        "description": f"For the roles {namespace_list(namespaces()[namespace].roles)}.",
        "servers": [_ref("servers", "sockets"), _ref("servers", "sockets-tls")],
        "messages": {
            name: _ref("components", "messages", name)
            for name in (*_sent_by_clients(events, namespace), *_sent_to(events, namespace))
        },
        "bindings": {"ws": {"method": "GET", "query": {"type": "object", "properties": query}}},
    }


def _sent_by_clients(events: Catalogue, namespace: str) -> list[str]:
    names = [_name(event) for event in _sorted(events.client) if namespace in event.namespaces]
    return [f"{kind}.{name}" for name in names for kind in ("client", "ack")]


def _sent_to(events: Catalogue, namespace: str) -> list[str]:
    """The messages that clients of a namespace receive, without acknowledgements, which are replies."""
    return [
        f"server.{_name(event)}"
        for event in _sorted(events.server)
        if namespace in event.namespaces and event.name != "ack"
    ]


def _operations_of_clients(events: Catalogue) -> dict[str, Any]:
    operations: dict[str, Any] = {}
    for namespace in sorted(namespaces()):
        for event in _sorted(events.client):
            if namespace in event.namespaces:
                name = _name(event)
                operations[f"{namespace}.{name}"] = {
                    **_operation("receive", namespace, [f"client.{name}"], summary(event.handler)),
                    "reply": _messages(namespace, [f"ack.{name}", "server.error"]),
                }
        operations[f"{namespace}.send"] = _operation(
            "send", namespace, _sent_to(events, namespace), "Events that the server sends to a client."
        )
    return operations


def _redis_channels(published: Iterable[str], streams: Mapping[str, StreamEntry]) -> dict[str, Any]:
    bus_messages = {name: _ref("components", "messages", name) for name in published}
    stream, channel = key("stream"), key(CHANNEL)
    return {
        "stream": _redis_channel(
            stream,
            f"A stream: `XADD {stream} * message <json>`. Durable: each message is delivered once, in order.",
            bus_messages,
        ),
        "events": _redis_channel(
            channel,
            f"Pub/Sub: `PUBLISH {channel} <json>`. A message is lost when no bridge listens.",
            bus_messages,
        ),
        **{
            name: _redis_channel(
                key(name),
                f"A stream: the field `{entry.field}` of each entry. {summary(entry.payload)}",
                {entry.field: _ref("components", "messages", entry.field)},
            )
            for name, entry in streams.items()
        },
    }


def _redis_channel(address: str, description: str, messages: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "address": address,
        "description": description,
        "servers": [_ref("servers", "redis")],
        "messages": messages,
    }


def _operations_on_redis(channels: Mapping[str, Any], streams: Mapping[str, StreamEntry]) -> dict[str, Any]:
    published = list(channels["stream"]["messages"])
    return {
        "bus.stream": _operation("receive", "stream", published, "Messages that a backbone publishes."),
        "bus.events": _operation(
            "receive", "events", published, "Messages that a backbone publishes and that may be lost."
        ),
        **{
            f"bus.{name}": _operation(
                "send", name, [entry.field], "Entries for the recorder and for backbones."
            )
            for name, entry in streams.items()
        },
    }


def _operation(action: str, channel: str, messages: Iterable[str], text: str) -> dict[str, Any]:
    return {"action": action, "summary": text, **_messages(channel, messages)}


def _messages(channel: str, names: Iterable[str]) -> dict[str, Any]:
    return {
        "channel": _ref("channels", channel),
        "messages": [_ref("channels", channel, "messages", name) for name in names],
    }


# --- Servers and credentials -------------------------------------------------------------------------


def _servers() -> dict[str, Any]:
    names = [name for name in _credentials() if name != "redis"]
    credentials = [_ref("components", "securitySchemes", name) for name in names]
    return {
        "sockets": _server("ws", "localhost:8001", "The socket server, reached directly.", credentials),
        "sockets-tls": _server(
            "wss", "example.com", "The socket server behind a proxy with TLS.", credentials
        ),
        "redis": _server(
            "redis", "localhost:6379", "The bus.", [_ref("components", "securitySchemes", "redis")]
        ),
    }


def _server(protocol: str, default: str, description: str, security: list[Any]) -> dict[str, Any]:
    # The server does not know its public address: the reader of the document fills it in.
    return {
        "host": "{host}",
        "protocol": protocol,
        "description": description,
        "variables": {"host": {"default": default}},
        "security": security,
    }


def _credentials() -> dict[str, Any]:
    """The security schemes. A handshake carries exactly one of them; `redis` is the bus's."""
    found: dict[str, Any] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "For native clients and servers.",
        },
        "subprotocol": {
            "type": "httpApiKey",
            "name": "Sec-WebSocket-Protocol",
            "in": "header",
            "description": f"For browsers: `{SUBPROTOCOL}, {BEARER_SUBPROTOCOL}<jwt>`.",
        },
        "redis": {"type": "userPassword", "description": "A Redis user, if Redis has users."},
    }
    if conf().query_token:
        found["query"] = {"type": "httpApiKey", "name": "token", "in": "query", "description": "For tools."}
    return found


def _name(event: Any) -> str:
    """An event's name as a key of the document, where AsyncAPI allows no colon."""
    name: str = event.name
    return name.replace(":", ".")


def _sorted(table: Mapping[str, Any]) -> list[Any]:
    return [table[name] for name in sorted(table)]


def _ref(*path: str) -> dict[str, str]:
    return {"$ref": "#/" + "/".join(path)}
