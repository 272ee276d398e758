from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.protocol import bus_message
from realtime.protocol.bus_message import BusMessage, InvalidMessage
from realtime.protocol.catalogue import catalogue
from realtime.protocol.events import TokenRevoke, UserDisconnect
from tests.inprocess import HUB, PORTAL, data_of


def parse(event: str, data: Any = None, **more: Any) -> BusMessage:
    return bus_message.parse(json.dumps({"event": event, "data": data, **more}).encode())


def refused(*args: Any, **kwargs: Any) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        parse(*args, **kwargs)
    return caught.value


def outcome(raw: bytes) -> BusMessage | str:
    """The message, or the code of its error. Anything else is raised."""
    try:
        return bus_message.parse(raw)
    except InvalidMessage as error:
        return error.code


def outcome_of(event: str, data: Any, **more: Any) -> BusMessage | str:
    return outcome(json.dumps({"event": event, "data": data, **more}).encode())


MESSAGE = {"thread_id": 42, "message_id": 7}
NAMESPACE_SETS = st.lists(st.sampled_from([HUB, PORTAL]), min_size=1, max_size=3)


# --- Routing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "data", "targets"),
    [
        ("thread:message", MESSAGE, {(HUB, "thread:42"), (PORTAL, "thread:42")}),
        ("chat:ended", {"thread_id": "42"}, {(HUB, "thread:42"), (PORTAL, "thread:42")}),
        (
            "chat:accepted",
            {"thread_id": 42, "attendant_id": 3},
            {(HUB, "thread:42"), (PORTAL, "thread:42")},
        ),
        (
            "chat:accepted",
            {"thread_id": 42, "attendant_id": 3, "user_id": 9},
            {(HUB, "thread:42"), (PORTAL, "thread:42"), (PORTAL, "user:9")},
        ),
        ("queue:new", {"item_id": 1}, {(HUB, "presence:attendants")}),
        ("queue:new", {"item_id": 1, "group": "sales"}, {(HUB, "presence:sales")}),
        ("queue:taken", {"item_id": 1, "group": "sales"}, {(HUB, "presence:sales")}),
        ("queue:updated", {"group": "sales"}, {(HUB, "presence:sales")}),
        ("queue:updated", None, {(HUB, "presence:attendants")}),
        ("user:notification", {"user_id": 9}, {(HUB, "user:9")}),
    ],
)
def test_default_routing(event: str, data: Any, targets: set[tuple[str, str]]):
    assert set(parse(event, data).targets) == targets


def test_rooms_replace_the_default_routing():
    targets = parse("thread:message", MESSAGE, rooms=["user:1", "presence:sales"]).targets
    assert set(targets) == {(HUB, "user:1"), (PORTAL, "user:1"), (HUB, "presence:sales")}


def test_message_to_rooms_that_no_namespace_of_its_audience_has_is_refused():
    error = refused("thread:message", MESSAGE, rooms=["presence:sales"], namespaces=[PORTAL])
    assert (error.code, "presence:sales" in str(error)) == ("no_audience", True)


@pytest.mark.parametrize("rooms", ["thread:42", None])
def test_routing_that_returns_no_list_of_rooms_is_named(monkeypatch: pytest.MonkeyPatch, rooms: object):
    event = catalogue().server["thread:message"]
    events = {**catalogue().server, event.name: replace(event, rooms=lambda payload: rooms)}
    monkeypatch.setattr(catalogue(), "server", events)
    with pytest.raises(
        TypeError, match=f"thread:message: its rooms: expected a list of rooms, got {rooms!r}"
    ):
        parse("thread:message", MESSAGE)


def test_room_named_twice_is_served_once():
    targets = parse("thread:message", MESSAGE, rooms=["user:1", "user:1"], namespaces=[HUB, HUB]).targets
    assert targets == ((HUB, "user:1"),)


def test_namespaces_narrow_the_audience():
    assert parse("thread:message", MESSAGE, namespaces=[HUB]).targets == ((HUB, "thread:42"),)


@pytest.mark.parametrize("namespaces", [[PORTAL], [HUB, PORTAL]])
def test_notification_reaches_the_portal_only_when_asked(namespaces: list[str]):
    targets = parse("user:notification", {"user_id": 9}, namespaces=namespaces).targets
    assert set(targets) == {(namespace, "user:9") for namespace in namespaces}


def test_narrowing_chat_accepted_to_the_hub_leaves_out_the_customer():
    data = {"thread_id": 42, "attendant_id": 3, "user_id": 9}
    assert parse("chat:accepted", data, namespaces=[HUB]).targets == ((HUB, "thread:42"),)


@pytest.mark.parametrize("more", [{"namespaces": [PORTAL]}, {"namespaces": [PORTAL], "rooms": ["user:1"]}])
def test_queue_event_for_the_portal_only_has_no_audience(more: dict[str, Any]):
    assert refused("queue:new", {"item_id": 1}, **more).code == "no_audience"


@given(
    namespaces=st.none() | NAMESPACE_SETS,
    rooms=st.none() | st.lists(st.sampled_from(["user:1", "thread:2", "presence:a"]), min_size=1),
)
def test_nothing_widens_the_audience(namespaces, rooms):
    for name, event in catalogue().server.items():
        if event.bus:
            data = {"thread_id": 1, "message_id": 1, "attendant_id": 1, "item_id": 1, "user_id": 1}
            message = outcome_of(name, data, namespaces=namespaces, rooms=rooms)
            if message != "no_audience":
                reached = {namespace for namespace, _ in message.targets}
                assert reached <= event.namespaces & set(namespaces or event.namespaces)


@pytest.mark.parametrize("room", ["", "42", "thread:", "lobby:1", "thread:a b", "thread:*"])
def test_invalid_room_is_refused(room: str):
    assert refused("thread:message", MESSAGE, rooms=["user:1", room]).code == "invalid_message"


def test_message_to_too_many_rooms_is_refused():
    rooms = [f"thread:{number}" for number in range(bus_message.MOST_TARGETS)]
    assert parse("thread:message", MESSAGE, rooms=rooms, namespaces=[HUB])
    error = refused("thread:message", MESSAGE, rooms=rooms)  # in both namespaces
    assert str(error).startswith("too_many_rooms: 2000 rooms in all namespaces, at most 1000")


@pytest.mark.parametrize("namespaces", [["lobby"], [HUB, "lobby"], [""]])
def test_unknown_namespace_is_refused(namespaces: list[str]):
    assert "namespaces: some of ['hub', 'portal']" in str(
        refused("thread:message", MESSAGE, namespaces=namespaces)
    )


# --- Contents ----------------------------------------------------------------------------------------


def test_ids_become_strings_and_other_fields_pass_through():
    message = parse("thread:message", {**MESSAGE, "body": "hi", "n": 1.5})
    assert data_of(message) == {"thread_id": "42", "message_id": "7", "body": "hi", "n": 1.5}


def test_idempotency_id_and_exclusion_are_kept():
    message = parse("thread:message", MESSAGE, id="m-7", **{"except": "c1"})
    assert (message.id, message.exclude) == ("m-7", "c1")


@pytest.mark.parametrize("id", [7, 0, -1, 2**63 - 1])
def test_idempotency_id_may_be_a_whole_number(id: int):
    assert parse("thread:message", MESSAGE, id=id).id == str(id)
    assert parse("user:disconnect", {"user_id": 7, "namespace": HUB}, id=id).id == str(id)


def test_idempotency_id_may_have_128_characters():
    assert parse("thread:message", MESSAGE, id="x" * 128).id == "x" * 128


@pytest.mark.parametrize(
    "more",
    [
        *({"id": value} for value in ("", "x" * 129, 1.5, True, [], 2**63, 10**400)),
        *({"rooms": value} for value in ([], "thread:42", [1], {}, ["user:1"] * 1001)),
        *({"namespaces": value} for value in ([], "hub", [1])),
        *({"except": value} for value in (7, ["c1"], "x" * 129)),
    ],
    ids=repr,
)
def test_option_of_the_wrong_shape_is_refused(more: dict[str, Any]):
    assert refused("thread:message", MESSAGE, **more).code == "invalid_message"


def test_what_a_publication_carries_besides_its_frame_is_short(settings):
    """Else it could not tell its length, and clients would get it as a part of the frame."""
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"BUS_BYTES": 0}}
    long = "x" * 1_000_000
    assert refused("thread:message", MESSAGE, **{"except": long}).code == "invalid_message"
    assert parse("thread:message", MESSAGE, traceparent=long).traceparent is None


@pytest.mark.parametrize("value", [7, True, None, [1e300] * 1000, {"a": "b"}, "x" * 129])
def test_traceparent_that_is_no_short_text_is_ignored(value: Any):
    assert parse("thread:message", MESSAGE, traceparent=value).traceparent is None


def test_traceparent_of_the_longest_length_is_kept():
    assert parse("thread:message", MESSAGE, traceparent="x" * 128).traceparent == "x" * 128


@pytest.mark.parametrize("name", ["id", "rooms", "namespaces", "except"])
def test_option_may_be_null(name: str):
    assert parse("thread:message", MESSAGE, **{name: None}) == parse("thread:message", MESSAGE)


def test_unknown_keys_are_ignored():
    assert parse("thread:message", MESSAGE, ttl=5) == parse("thread:message", MESSAGE)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"message_id": 7}, "thread_id"),
        ({"thread_id": 42}, "message_id"),
        ({"thread_id": "a b", "message_id": 7}, "thread_id"),
        ({"thread_id": None, "message_id": 7}, "thread_id"),
        (None, "thread_id"),
    ],
)
def test_missing_or_wrong_field_is_named(data: Any, field: str):
    error = refused("thread:message", data)
    assert error.code == "invalid_payload"
    assert str(error).startswith(f"invalid_payload: thread:message: {field}: ")


@pytest.mark.parametrize("data", [[], 1, "x", True])
def test_data_that_is_no_object_is_refused(data: Any):
    assert refused("thread:message", data).code == "invalid_payload"


@pytest.mark.parametrize("event", ["queue:updated", "thread:message", "user:disconnect"])
@pytest.mark.parametrize("data", ["[]", " [ ]", "[1]"])
def test_empty_array_of_php_is_refused_with_what_php_must_send(event: str, data: str):
    with pytest.raises(InvalidMessage) as caught:
        bus_message.parse(f'{{"event": "{event}", "data": {data}}}'.encode())
    assert caught.value.code == "invalid_payload"
    assert "expected an object, got an array" in str(caught.value)
    assert "(object)[]" in str(caught.value)
    assert "JSON_FORCE_OBJECT" in str(caught.value)


# --- What may be published ---------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["thread:typing", "attendant:online", "presence:state", "ack", "room:gap"])
def test_event_of_the_server_itself_is_refused(event: str):
    assert refused(event, {}).code == "not_publishable"


@pytest.mark.parametrize("event", ["join:thread", "typing:start", "heartbeat", "resume"])
def test_event_from_clients_is_refused(event: str):
    assert refused(event, {}).code == "client_event"


@pytest.mark.parametrize("event", ["", "thread:massage", "THREAD:MESSAGE", "x" * 10_000])
def test_unknown_event_is_refused_in_few_words(event: str):
    error = refused(event, {})
    assert error.code == "unknown_event"
    assert len(str(error)) < 200


@pytest.mark.parametrize("exp", [1795428675, 1795428675.5, 1e300, -1.5])
def test_token_is_revoked_until_any_time_that_a_token_may_name(exp: float):
    payload = parse("token:revoke", {"jti": "j", "exp": exp}).payload
    assert isinstance(payload, TokenRevoke)
    assert payload.exp == exp


def test_control_event_goes_to_no_room():
    message = parse("user:disconnect", {"user_id": 7, "namespace": HUB}, id="d1")
    assert (message.targets, message.tail, message.id) == ((), b"", "d1")
    assert message.payload == UserDisconnect(user_id="7", namespace=HUB)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("user:disconnect", {"user_id": 7, "namespace": "lobby"}),
        ("user:disconnect", {"user_id": 7}),
        ("token:revoke", {"jti": "j"}),
        ("token:revoke", {"jti": "j", "exp": "soon"}),
        ("presence:set", {"user_id": 7, "status": "offline"}),
        ("presence:set", {"user_id": 7}),
        ("thread:grant", {"thread_id": 42}),
        ("thread:revoke", {"user_id": 7}),
    ],
)
def test_control_event_is_validated_too(event: str, data: dict[str, Any]):
    assert refused(event, data).code == "invalid_payload"


# --- Bytes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [b"", b"{", b"hello", b"\xff\xfe", b'{"event": "\xff"}'])
def test_bytes_that_are_not_json_are_refused(raw: bytes):
    with pytest.raises(InvalidMessage) as caught:
        bus_message.parse(raw)
    assert caught.value.code == "invalid_json"


def test_invalid_utf8_is_refused_even_where_it_would_pass_through():
    raw = b'{"event": "thread:message", "data": {"thread_id": 1, "message_id": 1, "body": "\xff"}}'
    with pytest.raises(InvalidMessage, match="invalid_json"):
        bus_message.parse(raw)


@pytest.mark.parametrize("levels", [127, 1000, 50_000])
def test_message_that_is_nested_too_deeply_is_refused(levels: int):
    """On every Python: what a parser makes of it depends on the version, and receivers have limits, too."""
    nested = b"[" * levels + b"]" * levels
    with pytest.raises(InvalidMessage, match="invalid_json: nested more than 128 levels"):
        bus_message.parse(b'{"event": "chat:ended", "data": {"thread_id": "1", "x": ' + nested + b"}}")


def test_message_may_be_nested_as_deeply_as_is_said():
    nested = b"[" * 126 + b"]" * 126
    message = bus_message.parse(b'{"event": "chat:ended", "data": {"thread_id": "1", "x": ' + nested + b"}}")
    assert isinstance(message, BusMessage)
    assert nested in message.tail


@pytest.mark.parametrize("raw", [b"[]", b"1", b"null", b"{}", b'{"event": 1}'])
def test_json_that_is_no_message_is_refused(raw: bytes):
    with pytest.raises(InvalidMessage) as caught:
        bus_message.parse(raw)
    assert caught.value.code == "invalid_message"


def test_message_beyond_the_limit_is_too_large(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"BUS_BYTES": 200}}
    assert parse("thread:message", {**MESSAGE, "body": "x" * 50})
    assert refused("thread:message", {**MESSAGE, "body": "x" * 200}).code == "too_large"


def test_limit_can_be_switched_off(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"BUS_BYTES": 0}}
    assert parse("thread:message", {**MESSAGE, "body": "x" * 300_000})
