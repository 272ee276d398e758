from __future__ import annotations

import contextlib
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.protocol.payloads import Empty, Id, InvalidPayload, Payload, PresenceGroup, parse_payload
from realtime.protocol.respelling import merge


class Inner(Payload, frozen=True):
    size: int


class Thing(Payload, frozen=True):
    thing_id: Id
    owner_id: Id | None = None
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None


# --- Ids and names of groups -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Id, PresenceGroup])
@pytest.mark.parametrize(("value", "text"), [(7, "7"), (0, "0"), (-7, "-7"), (10**63, str(10**63))])
def test_whole_number_becomes_a_string(kind: type[Id], value: int, text: str):
    assert kind.parse(value) == text


@pytest.mark.parametrize("value", ["", "a b", "é", 10**64, 1.0, 1.5])
def test_other_text_and_numbers_are_no_ids(value: object):
    with pytest.raises(ValueError, match="expected an id"):
        Id.parse(value)


@pytest.mark.parametrize("value", [None, True, False, [], {}, b"7"])
def test_other_types_are_no_ids(value: object):
    with pytest.raises(ValueError, match=f"got {type(value).__name__}"):
        Id.parse(value)


def test_name_of_a_group_is_composed():
    assert PresenceGroup.parse("E\u0301quipe Sa\u0303o Paulo") == "Équipe São Paulo"


@pytest.mark.parametrize("value", ["", "a:b", "💬", "x" * 65, "e" + "\u0301" * 100_000])
def test_other_text_is_no_name_of_a_group(value: str):
    with pytest.raises(ValueError, match="expected a group name"):
        PresenceGroup.parse(value)


class InGroup(Payload, frozen=True):
    group: PresenceGroup


def test_name_of_a_group_is_composed_in_the_data_as_well():
    data = '{"group": "E\u0301quipe", "more": 1.0}'.encode()
    payload = parse_payload(InGroup, data)
    assert payload.group == "Équipe"
    assert msgspec.json.decode(msgspec.json.encode(merge(payload, data), enc_hook=str)) == {
        "group": "Équipe",
        "more": 1.0,
    }


# --- Decoding ----------------------------------------------------------------------------------------


def test_payload_is_typed():
    thing = parse_payload(Thing, b'{"thing_id": 7, "owner_id": "ana", "kind": "b"}')
    assert thing == Thing(thing_id=Id("7"), owner_id=Id("ana"), kind="b")


@pytest.mark.parametrize("nothing", [b"", b"{}", msgspec.Raw(b"")])
def test_no_data_is_an_empty_object(nothing: bytes | msgspec.Raw):
    assert parse_payload(Empty, nothing) == Empty()


def test_fields_that_are_not_declared_are_ignored():
    assert parse_payload(Empty, b'{"whatever": 1}') == Empty()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{}", "thing_id: required"),
        (b'{"thing_id": null}', "thing_id: expected an id"),
        (b'{"thing_id": true}', "thing_id: expected an id"),
        (b'{"thing_id": "a b"}', "thing_id: expected an id"),
        (b'{"thing_id": 1.5}', "thing_id: expected an id"),
        (b'{"thing_id": 1, "owner_id": {}}', "owner_id: expected"),
        (b'{"thing_id": 1, "kind": "c"}', "kind: invalid enum value 'c'"),
        (b'{"thing_id": 1, "kind": 1}', "kind: expected str, got int"),
        (b'{"thing_id": 1, "inner": {}}', "inner.size: required"),
        (b'{"thing_id": 1, "inner": {"size": "1"}}', "inner.size: expected int, got str"),
        (b"[]", "expected object, got array"),
    ],
)
def test_message_names_the_field_and_what_was_expected(data: bytes, message: str):
    with pytest.raises(InvalidPayload) as caught:
        parse_payload(Thing, data)
    assert str(caught.value).startswith(message)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_payload_or_invalid(data: bytes):
    with contextlib.suppress(InvalidPayload):
        assert isinstance(parse_payload(Thing, data), Thing)


def test_field_of_a_type_without_decoder_is_a_mistake_of_the_event():
    class Odd(Payload, frozen=True):
        value: complex

    with pytest.raises(NotImplementedError, match="complex"):
        parse_payload(Odd, b'{"value": 1}')


# --- Passing through ---------------------------------------------------------------------------------


def test_everything_else_passes_through_byte_for_byte():
    data = b'{"thing_id": 7, "price": 1.10, "n": 12345678901234567890, "t": "\\u00e9", "z": {"b":1,  "a":2}}'
    merged = merge(parse_payload(Thing, data), data)
    assert bytes(merged["price"]) == b"1.10"
    assert bytes(merged["n"]) == b"12345678901234567890"
    assert bytes(merged["z"]) == b'{"b":1,  "a":2}'
    assert list(merged) == ["thing_id", "price", "n", "t", "z"]


def test_no_data_merges_to_nothing():
    assert msgspec.json.encode(merge(Empty(), b"")) == b"{}"


# --- Values that are passed on unread ------------------------------------------------------------------


class Anything(Payload, frozen=True):
    position: msgspec.Raw


@pytest.mark.parametrize(
    "value",
    [
        "null",
        "0",
        "-1.5e300",
        "9" * 300,
        '"9"',
        "1" + "0" * 308,
        "[1e308, " + "0." + "9" * 400 + "]",
        "1e-400",
        '["1e400", "\\\\", "1e400"]',
        '{"x": [1, {"y": 2}]}',
        "[" * 100 + "]" * 100,
        '"' + "9" * 20_000 + '"',
    ],
)
def test_value_that_every_receiver_can_read_is_passed_on_as_it_came(value: str):
    payload = parse_payload(Anything, f'{{"position": {value}}}'.encode())
    assert bytes(payload.position) == value.encode()


def test_value_that_is_passed_on_is_not_decoded(monkeypatch):
    """msgspec takes 9 µs for each of these numbers."""
    monkeypatch.setattr(msgspec.json, "decode", None)
    parse_payload(Anything, b'{"position": [%b0]}' % (b"1e300, {}, " * 10_000))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("9" * 20_000, "out of range"),
        ("-" + "9" * 20_000, "out of range"),
        ("9" * 309, "out of range"),
        ("1e400", "out of range"),
        ("[1E+0309]", "out of range"),
        ("[0,-" + "9" * 250 + "e99]", "out of range"),
        ('["\\\\",1e400,""]', "out of range"),
        ('{"x": [1, ' + "9" * 5_000 + "]}", "out of range"),
        ("[" * 101 + "]" * 101, "nested"),
        ("[" * 20_000 + "]" * 20_000, "nested"),
    ],
)
def test_value_that_breaks_receivers_is_refused_by_the_name_of_its_field(value: str, reason: str):
    with pytest.raises(InvalidPayload, match=f"position: .*{reason}|recursion"):
        parse_payload(Anything, f'{{"position": {value}}}'.encode())
