"""The catalogue: every event registered once, with its direction, audience, rooms and payload.

The consumers, the bridge, the publisher and the documentation are all read off it. A product adds events of its
own with the same three decorators, from modules named in `REALTIME["EVENTS"]` (docs/adding-an-event.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured

from realtime.conf import cached, conf, load
from realtime.protocol.declarations import check_class, check_name, check_routing
from realtime.protocol.namespaces import Namespace, namespaces
from realtime.protocol.payloads import Empty, Payload
from realtime.protocol.respelling import Respell, checked
from realtime.protocol.wire_types import (
    annotated_ack,
    annotated_payload,
    check_ack,
    check_handler,
    check_payload,
)

BUILT_IN = (
    "realtime.protocol.events",
    "realtime.connections.client_events",
    "realtime.auth.revocation",
    "realtime.auth.grants",
    "realtime.bridge.control_events",
)
"""Modules that register events for all namespaces; the others are those of the namespaces, and of the settings."""

ALWAYS = frozenset({"heartbeat", "auth:refresh", "join", "leave", "resume"})
"""What every client may send, whatever its namespace's `client_events` are."""

Audience = Iterable[str] | Callable[[Namespace], bool] | None
"""Names of namespaces, or what tells whether a namespace belongs to it; None: all that are registered."""

Target = tuple[frozenset[str], str]
"""The namespaces and the room that an event goes to."""

Routing = Callable[[Any], Sequence[str | Target]]
"""Payload -> rooms. A bare room means: in every namespace of the event's default audience."""

ClientHandler = Callable[[Any, Any], Awaitable[Any]]
"""(connection, payload) -> the data of the acknowledgement."""

BusHandler = Callable[[Any, "BusContext"], Awaitable[None]]
P = TypeVar("P", bound=type[Payload])
C = TypeVar("C", bound=ClientHandler)
B = TypeVar("B", bound=BusHandler)

E = TypeVar("E", "ServerEvent", "ClientEvent")


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
    """The widest audience it may ever have."""
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
    ack: Any = Empty
    """The type of the acknowledgement's data."""
    check: Respell | None = None
    """Checks the acknowledgement, and makes strings of its ids; None if it may be any object."""
    waits: bool = True
    """Whether the handler waits for more than `connection.emit`."""


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
    orders: set[BusHandler] = field(default_factory=set)
    """The bus handlers that are run again after an outage of Redis, until they succeed."""


@dataclass(slots=True)
class Registry(Catalogue):
    """What modules have registered. Which namespaces an event is for is only known with the settings."""

    audiences: dict[tuple[type, str], tuple[Audience, Audience]] = field(default_factory=dict)
    """The `namespaces` and `default_namespaces` of an event, by its direction and name."""


registry = Registry()


@cached()
def catalogue() -> Catalogue:
    """The catalogue of this process, with the events of its namespaces and the product's own.

    Raises `ImproperlyConfigured` when a module of events cannot be imported, registers an event twice, names a
    namespace that is not registered, or has a payload or an acknowledgement of a type that has no form in JSON.
    """
    registered = namespaces()
    for module in BUILT_IN:
        importlib.import_module(module)
    for namespace in registered.values():
        _import(f"namespace {namespace.name!r}", namespace.events)
    _import("REALTIME['EVENTS']", conf().events)
    _check_types(registry)
    _check_bus_handlers(registry)
    found = Catalogue(
        server=_with_audience(_for_clients(event, registered) for event in registry.server.values()),
        client=_with_audience(_from_clients(event, registered) for event in registry.client.values()),
        control=registry.control,
        streams=registry.streams,
        bus_handlers=registry.bus_handlers,
        orders=registry.orders,
    )
    for namespace in registered.values():
        if unknown := sorted((namespace.client_events or frozenset()) - found.client.keys()):
            raise ImproperlyConfigured(
                f"namespace {namespace.name!r}: client_events: there is no event {unknown[0]!r} from clients"
            )
    return found


def _check_types(events: Catalogue) -> None:
    tables: tuple[Mapping[str, Any], ...] = (events.server, events.client, events.control, events.streams)
    for table in tables:
        for name, event in table.items():
            check_payload(name, event.payload)
    for name, event in events.client.items():
        check_ack(name, event.ack)


def _check_bus_handlers(events: Catalogue) -> None:
    if unknown := sorted(events.bus_handlers.keys() - events.server.keys() - events.control.keys()):
        raise ImproperlyConfigured(f"on_bus({unknown[0]!r}): there is no such event")


def _with_audience(events: Iterable[E]) -> dict[str, E]:
    """Without the events of rooms and of presence that no registered namespace has."""
    return {event.name: event for event in events if event.namespaces}


def _import(where: str, modules: Iterable[str]) -> None:
    for module in modules:
        try:
            load(importlib.import_module, module)
        except ImportError as error:
            raise ImproperlyConfigured(f"{where}: cannot import {module!r}: {error}") from error


def _for_clients(event: ServerEvent, registered: Mapping[str, Namespace]) -> ServerEvent:
    widest, default = registry.audiences[ServerEvent, event.name]
    audience = _resolved(event.name, widest, registered)
    narrower = audience if default is None else _resolved(event.name, default, registered) & audience
    return replace(event, namespaces=audience, default_namespaces=narrower)


def _from_clients(event: ClientEvent, registered: Mapping[str, Namespace]) -> ClientEvent:
    audience = _resolved(event.name, registry.audiences[ClientEvent, event.name][0], registered)
    return replace(
        event,
        namespaces=frozenset(name for name in audience if _may_send(registered[name], event.name)),
        check=checked(event.ack),
    )


def _may_send(namespace: Namespace, event: str) -> bool:
    return namespace.client_events is None or event in namespace.client_events | ALWAYS


def _resolved(name: str, audience: Audience, registered: Mapping[str, Namespace]) -> frozenset[str]:
    if audience is None:
        return frozenset(registered)
    if callable(audience):
        return frozenset(name for name, namespace in registered.items() if audience(namespace))
    given = frozenset() if isinstance(audience, str) else frozenset(audience)
    if not given or not given <= registered.keys():
        raise ImproperlyConfigured(
            f"event {name!r}: expected namespaces out of {sorted(registered)}, "
            f"got {repr(audience) if isinstance(audience, str) else sorted(given)}"
        )
    return given


def server_event(
    name: str,
    *,
    namespaces: Audience = None,
    default_namespaces: Audience = None,
    rooms: Routing | None = None,
    bus: bool | None = None,
) -> Callable[[P], P]:
    """Register the decorated payload class as an event from the server to clients.

    >>> @server_event("ticket:moved", rooms=lambda payload: [f"thread:{payload.thread_id}"])
    ... class TicketMoved(Payload, frozen=True):
    ...     thread_id: Id
    ...     column: str
    >>> catalogue().server["ticket:moved"].bus
    True

    Args:
        name: `topic:verb`, in lower case.
        namespaces: The widest audience that the event may ever have; by default all namespaces.
        default_namespaces: The audience unless the publisher names another one; by default all of `namespaces`.
        rooms: Returns the rooms that a payload goes to. Without it the server itself sends the event.
        bus: Whether a backbone may publish the event; by default it may if `rooms` is given.

    Raises:
        ImproperlyConfigured: When the name is not well-formed, or is registered already. An unknown namespace is
            reported when the catalogue is loaded.
    """

    check_name(name)
    check_routing(name, rooms)

    def register(payload: P) -> P:
        check_class(name, payload)
        registry.server[_new(name, registry.server)] = ServerEvent(
            name=name,
            payload=payload,
            namespaces=frozenset(),
            default_namespaces=frozenset(),
            rooms=rooms,
            bus=rooms is not None if bus is None else bus,
        )
        registry.audiences[ServerEvent, name] = namespaces, default_namespaces
        return payload

    return register


def client_event(name: str, *, namespaces: Audience = None, waits: bool = True) -> Callable[[C], C]:
    """Register `async handler(connection, payload: SomePayload) -> SomeAck` for an event from clients.

    The returned mapping, struct or dataclass becomes the `data` of the acknowledgement, None an empty object. The
    return annotation is its type in the generated documents; without one, it is an object with any fields. To refuse an
    event, the handler raises `realtime.protocol.envelope.EventError`.

    >>> @client_event("ticket:point")
    ... async def point(connection, payload: TicketPoint):
    ...     await connection.emit(f"thread:{payload.thread_id}", "ticket:pointed", thread_id=payload.thread_id)
    >>> catalogue().client["ticket:point"].payload
    <class 'TicketPoint'>

    Args:
        name: `topic:verb`, in lower case.
        namespaces: Namespaces whose clients may send the event; by default all.
        waits: False for a handler that awaits nothing but `connection.emit`: it runs without a task, where
            `asyncio.timeout` and `asyncio.current_task` do not work, and costs less.

    Raises:
        ImproperlyConfigured: When the name is not well-formed or is registered already, when the second parameter of
            the handler has no payload class as its annotation, or when its return annotation cannot be evaluated.
    """

    check_name(name)

    def register(handler: C) -> C:
        check_handler(name, handler)
        registry.client[_new(name, registry.client)] = ClientEvent(
            name=name,
            payload=annotated_payload(name, handler),
            namespaces=frozenset(),
            handler=handler,
            ack=annotated_ack(name, handler),
            waits=waits,
        )
        registry.audiences[ClientEvent, name] = namespaces, None
        return handler

    return register


def control_event(name: str) -> Callable[[P], P]:
    """Register the decorated payload class as a control event; `on_bus` says what it does."""

    check_name(name)

    def register(payload: P) -> P:
        check_class(name, payload)
        registry.control[_new(name, registry.control)] = ControlEvent(name=name, payload=payload)
        return payload

    return register


def stream_entry(stream: str, *, field: str) -> Callable[[P], P]:
    """Register the decorated payload class as what the entries of a stream hold, in that field of theirs."""

    check_name(stream)

    def register(payload: P) -> P:
        check_class(stream, payload)
        registry.streams[_new(stream, registry.streams)] = StreamEntry(stream, field, payload)
        return payload

    return register


def on_bus(name: str, *, is_order: bool = False) -> Callable[[B], B]:
    """Run `async handler(payload, context)` in the bridge for each valid bus message of this name.

    The bridge reads an entry again when its delivery failed: a handler must bear running twice. What an order
    (`is_order`) asks of Redis is not lost to an outage: the bridge waits for Redis and runs it again. It must depend on
    nothing else, as the whole bus waits for it. Any other handler that fails twice makes a dead letter.
    """

    check_name(name)

    def register(handler: B) -> B:
        check_handler(name, handler)
        registry.bus_handlers.setdefault(name, []).append(handler)
        if is_order:
            registry.orders.add(handler)
        return handler

    return register


def _new(name: str, table: dict[str, Any]) -> str:
    if name in table:
        raise ImproperlyConfigured(f"event {name!r} is registered twice")
    return name
