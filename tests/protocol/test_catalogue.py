from __future__ import annotations

import doctest
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, wraps
from unittest.mock import AsyncMock

import msgspec
import pytest
from django.core.exceptions import ImproperlyConfigured

from realtime.protocol import catalogue as module
from realtime.protocol import namespaces as namespace_module
from realtime.protocol.catalogue import (
    BusContext,
    Registry,
    catalogue,
    client_event,
    control_event,
    on_bus,
    server_event,
)
from realtime.protocol.namespaces import THREAD, Namespace, Presence, namespaces, shows, uses
from realtime.protocol.payloads import Empty, Id, Payload
from tests.inprocess import HUB, PORTAL
from tests.ops.namespace import BOARD


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """Nothing is registered but what the test registers."""
    catalogue()  # a module that is imported later would register its events here
    fresh = Registry()
    monkeypatch.setattr(module, "registry", fresh)
    monkeypatch.setattr(module, "BUILT_IN", ())
    catalogue.cache_clear()
    yield fresh
    catalogue.cache_clear()


# --- What the wire protocol promises -----------------------------------------------------------------

BOTH, HUB_ONLY = {HUB, PORTAL}, {HUB}
READY = {"connection_id", "namespace", "user_id", "role", "heartbeat_interval", "expires_at", "rooms"}


@pytest.mark.parametrize(
    ("name", "namespaces"),
    [
        ("heartbeat", BOTH),
        ("presence:online", HUB_ONLY),
        ("presence:away", HUB_ONLY),
        ("presence:offline", HUB_ONLY),
        ("join:thread", BOTH),
        ("leave:thread", BOTH),
        ("typing:start", BOTH),
        ("typing:stop", BOTH),
        ("cursor:move", BOTH),
        ("auth:refresh", BOTH),
        ("resume", BOTH),
    ],
)
def test_client_event_and_who_may_send_it(name: str, namespaces: set[str]):
    assert catalogue().client[name].namespaces == namespaces


@pytest.mark.parametrize(
    ("name", "bus", "namespaces", "required"),
    [
        ("thread:message", True, BOTH, {"thread_id", "message_id"}),
        ("thread:typing", False, BOTH, {"thread_id", "user_id", "namespace", "name", "typing"}),
        ("thread:cursor", False, BOTH, {"thread_id", "user_id", "namespace", "name", "position"}),
        ("chat:accepted", True, BOTH, {"thread_id", "attendant_id"}),
        ("chat:ended", True, BOTH, {"thread_id"}),
        ("queue:new", True, HUB_ONLY, {"item_id"}),
        ("queue:taken", True, HUB_ONLY, {"item_id"}),
        ("queue:updated", True, HUB_ONLY, set()),
        ("attendant:online", False, HUB_ONLY, {"user_id", "name", "status", "since"}),
        ("attendant:away", False, HUB_ONLY, {"user_id", "name", "status", "since"}),
        ("attendant:offline", False, HUB_ONLY, {"user_id", "name", "status", "since"}),
        ("customer:online", False, HUB_ONLY, {"thread_id", "user_id", "name", "since"}),
        ("customer:offline", False, HUB_ONLY, {"thread_id", "user_id", "name", "since"}),
        ("customer:state", False, HUB_ONLY, {"thread_id", "customers", "offset"}),
        ("user:notification", True, BOTH, {"user_id"}),
        ("presence:state", False, HUB_ONLY, {"group", "members", "total", "offset"}),
        ("auth:expiring", False, BOTH, {"expires_at"}),
        ("room:left", False, BOTH, {"room", "reason"}),
        ("room:gap", False, BOTH, {"room", "reason"}),
        ("ack", False, BOTH, set()),
        ("error", False, BOTH, {"code", "message"}),
        ("connection:ready", False, BOTH, READY),
    ],
)
def test_server_event_its_audience_and_required_data(
    name: str, bus: bool, namespaces: set[str], required: set[str]
):
    event = catalogue().server[name]
    assert (event.bus, event.namespaces) == (bus, namespaces)
    assert {field.name for field in msgspec.structs.fields(event.payload) if field.required} == required


def test_notification_goes_to_the_hub_unless_the_publisher_says_otherwise():
    assert catalogue().server["user:notification"].default_namespaces == {HUB}


@pytest.mark.parametrize(
    "name", ["thread:grant", "thread:revoke", "user:disconnect", "token:revoke", "presence:set"]
)
def test_control_event_has_a_handler_in_the_bridge(name: str):
    assert name in catalogue().control
    assert catalogue().bus_handlers[name]


def test_no_name_stands_for_both_a_control_event_and_one_that_reaches_clients():
    assert not set(catalogue().control) & set(catalogue().server)


# --- Registering -------------------------------------------------------------------------------------


def test_server_event_with_routing_may_be_published(empty: Registry):
    @server_event("order:paid", rooms=lambda payload: ["user:7"])
    class OrderPaid(Payload, frozen=True):
        pass

    event = catalogue().server["order:paid"]
    assert event.payload is OrderPaid
    assert event.bus
    assert event.namespaces == event.default_namespaces == namespaces().keys()


def test_server_event_with_routing_can_be_kept_off_the_bus(empty: Registry):
    server_event("order:paid", rooms=lambda payload: ["user:7"], bus=False)(Empty)
    assert not empty.server["order:paid"].bus


def test_client_event_takes_its_payload_from_the_handler(empty: Registry):
    @client_event("order:cancel", namespaces={PORTAL})
    async def cancel(connection: object, payload: Empty) -> None:
        """Cancel it."""

    event = catalogue().client["order:cancel"]
    assert (event.payload, event.handler, event.namespaces) == (Empty, cancel, {PORTAL})


def test_handler_may_be_annotated_without_postponed_evaluation(empty: Registry):
    async def cancel(connection, payload):
        pass

    cancel.__annotations__["payload"] = Empty
    client_event("order:cancel")(cancel)
    assert empty.client["order:cancel"].payload is Empty


async def _no_payload(connection: object) -> None: ...
async def _wrong_payload(connection: object, payload: dict) -> None: ...
async def _no_annotation(connection, payload): ...
async def _unknown_name(connection: object, payload: NoSuchClass) -> None: ...  # noqa: F821
async def _too_many(connection: object, payload: Empty, more: int) -> None: ...


@pytest.mark.parametrize("handler", [_no_payload, _wrong_payload, _no_annotation, _unknown_name, _too_many])
def test_handler_without_payload_class_is_refused(empty: Registry, handler):
    with pytest.raises(ImproperlyConfigured, match=f"{handler.__name__}: expected"):
        client_event("order:cancel")(handler)
    assert not empty.client


async def _handler(connection: object, payload: Empty) -> None: ...
def _plain(connection: object, payload: Empty) -> None: ...
async def _no_routing(payload: Empty) -> list[str]: ...


class _Plain:
    pass


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda: server_event(Empty), "expected 'topic:verb'"),  # @server_event without parentheses
        (lambda: client_event(_handler), "expected 'topic:verb'"),
        (lambda: control_event(Empty), "expected 'topic:verb'"),
        (lambda: on_bus(_handler), "expected 'topic:verb'"),
        *(
            (
                lambda register=register, kind=kind: register("order:paid")(kind),
                "a class derived from Payload",
            )
            for register in (server_event, control_event)
            for kind in (_Plain, dataclass(_Plain), _plain, Empty())
        ),
        (lambda: client_event("order:paid")(_plain), "expected an async function, got .*_plain"),
        (lambda: on_bus("order:paid")(_plain), "expected an async function, got .*_plain"),
        (lambda: on_bus("order:paid")(_Plain), "expected an async function, got .*_Plain"),
        (lambda: server_event("order:paid", rooms=["user:7"]), r"rooms: .*got \['user:7'\]"),
        (lambda: server_event("order:paid", rooms=_no_routing), "rooms: .*not async, got .*_no_routing"),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_declared(empty: Registry, declare, said: str):
    with pytest.raises(ImproperlyConfigured, match=said):
        declare()
    assert [empty.server, empty.client, empty.control, empty.bus_handlers] == [{}, {}, {}, {}]


def test_handler_may_be_anything_that_is_awaited(empty: Registry):
    class Handler:
        async def __call__(self, payload: Payload, context: BusContext) -> None: ...

        async def method(self, payload: Payload, context: BusContext) -> None: ...

    async def handler(extra: int, payload: Payload, context: BusContext) -> None: ...

    @wraps(handler)
    def wrapper(payload, context):
        return handler(1, payload, context)

    handlers = [Handler(), Handler().method, partial(handler, 1), wrapper, AsyncMock()]
    for each in handlers:
        on_bus("order:paid")(each)
    assert empty.bus_handlers["order:paid"] == handlers


def test_handler_of_an_event_that_there_is_not_is_refused(empty: Registry):
    server_event("order:paid", rooms=lambda payload: ["user:7"])(Empty)
    on_bus("order:piad")(_handler)
    with pytest.raises(ImproperlyConfigured, match=r"on_bus\('order:piad'\): there is no such event"):
        catalogue()


def test_namespaces_that_are_one_name_are_quoted_whole(empty: Registry):
    server_event("order:paid", namespaces="hub")(Empty)
    with pytest.raises(ImproperlyConfigured, match="got 'hub'"):
        catalogue()


def test_control_event_is_registered_by_name(empty: Registry):
    control_event("order:freeze")(Empty)
    assert empty.control["order:freeze"].payload is Empty


def test_bus_handlers_run_in_the_order_of_registration(empty: Registry):
    async def first(payload: Payload, context: BusContext) -> None: ...
    async def second(payload: Payload, context: BusContext) -> None: ...

    on_bus("order:paid")(first)
    on_bus("order:paid")(second)
    assert empty.bus_handlers["order:paid"] == [first, second]


@pytest.mark.parametrize("register", [server_event, control_event])
def test_event_registered_twice_is_refused(empty: Registry, register):
    register("order:paid")(Empty)
    with pytest.raises(ImproperlyConfigured, match="'order:paid' is registered twice"):
        register("order:paid")(Empty)


@pytest.mark.parametrize("name", ["", "Order:paid", "order paid", "order:", ":paid", "a:b:c", "order.paid"])
def test_odd_event_name_is_refused(empty: Registry, name: str):
    with pytest.raises(ImproperlyConfigured, match="expected 'topic:verb'"):
        server_event(name)(Empty)


@pytest.mark.parametrize("names", [(), {"lobby"}, {HUB, "lobby"}])
@pytest.mark.parametrize("option", ["namespaces", "default_namespaces"])
def test_unknown_namespace_is_refused_when_the_catalogue_is_loaded(empty: Registry, names, option: str):
    server_event("order:paid", **{option: names})(Empty)
    with pytest.raises(
        ImproperlyConfigured, match=r"'order:paid': expected namespaces out of \['hub', 'portal'\]"
    ):
        catalogue()


def test_audience_may_be_a_condition(empty: Registry):
    server_event("order:paid", namespaces=shows(Presence.TEAM))(Empty)
    server_event("order:sent", namespaces=uses(THREAD), default_namespaces=shows(Presence.CUSTOMERS))(Empty)
    events = catalogue().server
    assert events["order:paid"].namespaces == {HUB}
    assert events["order:sent"].namespaces == {HUB, PORTAL}
    assert events["order:sent"].default_namespaces == {PORTAL}


def test_event_of_a_kind_of_rooms_that_no_namespace_has_is_none(empty: Registry):
    server_event("board:changed", namespaces=uses(BOARD))(Empty)
    assert "board:changed" not in catalogue().server


# --- A product's own events --------------------------------------------------------------------------


@pytest.fixture
def own_module(tmp_path, monkeypatch: pytest.MonkeyPatch, settings) -> Iterator[str]:
    """A module with events of its own, named in the settings."""
    (tmp_path / "shop_events.py").write_text(
        "from realtime.protocol.catalogue import server_event\n"
        "from realtime.protocol.payloads import Payload\n"
        "@server_event('shop:opened', rooms=lambda payload: ['presence:shop'])\n"
        "class ShopOpened(Payload, frozen=True):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings.REALTIME = {**settings.REALTIME, "EVENTS": ["shop_events"]}
    yield "shop_events"
    sys.modules.pop("shop_events", None)
    module.registry.server.pop("shop:opened", None)
    catalogue.cache_clear()


def test_modules_named_in_the_settings_are_part_of_the_catalogue(own_module: str):
    assert "shop:opened" in catalogue().server


def test_missing_module_of_events_is_named(settings):
    settings.REALTIME = {**settings.REALTIME, "EVENTS": ["no.such.events"]}
    with pytest.raises(ImproperlyConfigured, match=r"cannot import 'no\.such\.events'"):
        catalogue()


# --- Examples ----------------------------------------------------------------------------------------


class TicketPoint(Payload, frozen=True):
    thread_id: Id


TicketPoint.__module__, TicketPoint.__qualname__ = "builtins", "TicketPoint"  # so that its repr is short
TicketPoint.__annotations__["thread_id"] = Id


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(
    "documented",
    [module.server_event, module.client_event, Namespace],
    ids=["server_event", "client_event", "Namespace"],
)
def test_examples_of_the_documentation_run(documented: object):
    names = {
        **vars(module),
        **vars(namespace_module),
        "Id": Id,
        "Payload": Payload,
        "TicketPoint": TicketPoint,
    }
    names.pop("annotations")  # without it, the annotations of an example need no module of their own
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, "example", globs=names)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
