"""The catalogue: every event registered once, with its direction, audience, rooms and payload.

The consumers, the bridge, the publisher and the documentation are all read off it. A product adds events of its
own with the same three decorators, from modules named in `REALTIME["EVENTS"]` (docs/adding-an-event.md).
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured

from realtime.conf import conf
from realtime.protocol.payloads import Payload
from realtime.protocol.rooms import NAMESPACES

BUILT_IN = (
    "realtime.protocol.events",
    "realtime.connections.client_events",
    "realtime.auth.revocation",
    "realtime.bridge.control_events",
    "presence.events",
    "hub.events",
    "portal.events",
)

Target = tuple[frozenset[str], str]
"""The namespaces and the room that an event goes to."""

Routing = Callable[[Any], Sequence[str | Target]]
"""Payload -> rooms. A bare room means: in every namespace of the event's default audience."""

ClientHandler = Callable[[Any, Any], Awaitable[Mapping[str, object] | None]]
"""(connection, payload) -> the data of the acknowledgement."""

BusHandler = Callable[[Any, "BusContext"], Awaitable[None]]
P = TypeVar("P", bound=type[Payload])
C = TypeVar("C", bound=ClientHandler)
B = TypeVar("B", bound=BusHandler)

_NAME = re.compile(r"[a-z][a-z0-9_-]*:[a-z][a-z0-9_-]*|[a-z]{1,32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class BusContext:
    """What a bus handler knows about the message it handles."""

    at: float
    """When the entry was added: seconds since the epoch, in Redis' time."""
    order: str
    """Sorts like the messages were added: a handler that runs late must not undo what a later message did."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """Server -> client."""

    name: str
    payload: type[Payload]
    namespaces: frozenset[str]
    default_namespaces: frozenset[str]
    rooms: Routing | None
    """None: a frame to one connection, or one that only the server itself sends to a room."""
    bus: bool
    """Whether a backbone may publish it."""


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """Client -> server."""

    name: str
    payload: type[Payload]
    namespaces: frozenset[str]
    handler: ClientHandler
    ack: Any = None
    """The type of the acknowledgement's data, None for none."""


@dataclass(frozen=True, slots=True)
class ControlEvent:
    """Backbone -> socket server, over the bus only; nothing of it reaches a client."""

    name: str
    payload: type[Payload]


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """Socket server -> backbone: the entries of a stream that backbones may read."""

    stream: str
    """Its name below the prefix."""
    field: str
    """The field of an entry that holds the payload."""
    payload: type[Payload]


@dataclass(slots=True)
class Catalogue:
    """All events by name, one table a direction."""

    server: dict[str, ServerEvent] = field(default_factory=dict)
    client: dict[str, ClientEvent] = field(default_factory=dict)
    control: dict[str, ControlEvent] = field(default_factory=dict)
    streams: dict[str, StreamEntry] = field(default_factory=dict)
    bus_handlers: dict[str, list[BusHandler]] = field(default_factory=dict)
    """Run by the bridge before an event of that name is delivered, in the order of registration."""


_catalogue = Catalogue()


def catalogue() -> Catalogue:
    """The catalogue of this process, with the product's own events.

    Raises `ImproperlyConfigured` when a module of `REALTIME["EVENTS"]` cannot be imported or registers an event
    twice.
    """
    return _load(conf().events)


@lru_cache(maxsize=1)
def _load(modules: tuple[str, ...]) -> Catalogue:
    for module in (*BUILT_IN, *modules):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImproperlyConfigured(f"REALTIME['EVENTS']: cannot import {module!r}: {error}") from error
    return _catalogue


def server_event(
    name: str,
    *,
    namespaces: Iterable[str] = NAMESPACES,
    default_namespaces: Iterable[str] | None = None,
    rooms: Routing | None = None,
    bus: bool | None = None,
) -> Callable[[P], P]:
    """Register the decorated payload class as an event from the server to clients.

    `namespaces` is the widest audience it may ever have, `default_namespaces` the one it has unless the
    publisher says otherwise (default: all of `namespaces`), `rooms` its routing. An event with routing may be
    published over the bus unless `bus=False`.
    """

    def register(payload: P) -> P:
        audience = _namespaces(name, namespaces)
        _catalogue.server[_new(name, _catalogue.server)] = ServerEvent(
            name=name,
            payload=payload,
            namespaces=audience,
            default_namespaces=_namespaces(name, default_namespaces) if default_namespaces else audience,
            rooms=rooms,
            bus=rooms is not None if bus is None else bus,
        )
        return payload

    return register


def client_event(name: str, *, namespaces: Iterable[str] = NAMESPACES) -> Callable[[C], C]:
    """Register `async handler(connection, payload: SomePayload) -> dict | None` for an event from clients.

    What the handler returns becomes the `data` of the acknowledgement. It refuses by raising
    `realtime.protocol.envelope.EventError`.
    """

    def register(handler: C) -> C:
        _catalogue.client[_new(name, _catalogue.client)] = ClientEvent(
            name=name,
            payload=_payload_of(handler),
            namespaces=_namespaces(name, namespaces),
            handler=handler,
            ack=_ack_of(handler),
        )
        return handler

    return register


def control_event(name: str) -> Callable[[P], P]:
    """Register the decorated payload class as a control event; `on_bus` says what it does."""

    def register(payload: P) -> P:
        _catalogue.control[_new(name, _catalogue.control)] = ControlEvent(name=name, payload=payload)
        return payload

    return register


def stream_entry(stream: str, *, field: str) -> Callable[[P], P]:
    """Register the decorated payload class as what the entries of a stream hold, in that field of theirs."""

    def register(payload: P) -> P:
        _catalogue.streams[_new(stream, _catalogue.streams)] = StreamEntry(stream, field, payload)
        return payload

    return register


def on_bus(name: str) -> Callable[[B], B]:
    """Run `async handler(payload, context)` in the bridge for each valid bus message of this name.

    The bridge reads an entry again when its delivery failed: a handler must bear running twice.
    """

    def register(handler: B) -> B:
        _catalogue.bus_handlers.setdefault(name, []).append(handler)
        return handler

    return register


def _new(name: str, table: dict[str, Any]) -> str:
    if not _NAME.fullmatch(name):
        raise ImproperlyConfigured(f"event name {name!r}: expected 'topic:verb' in lower case")
    if name in table:
        raise ImproperlyConfigured(f"event {name!r} is registered twice")
    return name


def _namespaces(name: str, namespaces: Iterable[str]) -> frozenset[str]:
    given = frozenset(namespaces)
    if not given or not given <= NAMESPACES:
        raise ImproperlyConfigured(
            f"event {name!r}: namespaces must be some of {sorted(NAMESPACES)}, got {sorted(given)}"
        )
    return given


def _ack_of(handler: ClientHandler) -> Any:
    """The annotation of what a handler returns: a `TypedDict`, `None`, or anything else."""
    annotation = inspect.signature(handler).return_annotation
    if isinstance(annotation, str):
        annotation = inspect.unwrap(handler).__globals__.get(annotation)
    return annotation if typing.is_typeddict(annotation) else None


def _payload_of(handler: ClientHandler) -> type[Payload]:
    """The annotation of the handler's second parameter: a payload class, or its name in the handler's module."""
    parameters = list(inspect.signature(handler).parameters.values())
    annotation = parameters[1].annotation if len(parameters) == 2 else None
    if isinstance(annotation, str):
        annotation = inspect.unwrap(handler).__globals__.get(annotation)
    if not (isinstance(annotation, type) and issubclass(annotation, Payload)):
        raise ImproperlyConfigured(
            f"{getattr(handler, '__qualname__', handler)}: expected (connection, payload: SomePayload)"
        )
    return annotation
