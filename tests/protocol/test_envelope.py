from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from realtime.protocol.envelope import (
    Envelope,
    ErrorCode,
    InvalidFrame,
    decode,
    encode,
    frame_tail,
    iso,
)
from realtime.protocol.payloads import Id

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
VALID_IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=64) | st.integers(
    -(2**53) + 1, 2**53 - 1
)


def outcome(text: str) -> Envelope | ErrorCode:
    """The frame, or the code of its refusal. Anything else is raised."""
    try:
        return decode(text)
    except InvalidFrame as error:
        return error.code


# --- Client frames -----------------------------------------------------------------------------------


def test_frame_is_event_data_and_id():
    frame = decode('{"event": "join:thread", "data": {"thread_id": 42}, "id": "a"}')
    assert (frame.event, bytes(frame.data), frame.id) == ("join:thread", b'{"thread_id": 42}', "a")


@pytest.mark.parametrize("text", ['{"event": "heartbeat"}', '{"event": "heartbeat", "data": null}'])
def test_data_may_be_left_out_or_null(text: str):
    assert bytes(decode(text).data) == b""


@pytest.mark.parametrize(
    "text", ['{"event": "e"}', '{"event": "e", "id": null}', '{"event": "e", "data": {}}']
)
def test_id_may_be_left_out_or_null(text: str):
    assert decode(text).id is None


def test_unknown_keys_are_ignored():
    assert decode('{"event": "e", "room": "thread:1", "offset": 3, "x": [1]}').event == "e"


@given(VALID_IDS)
def test_id_comes_back_as_it_was_sent(frame_id: str | int):
    assert decode(json.dumps({"event": "e", "id": frame_id})).id == frame_id


@pytest.mark.parametrize("frame_id", ["", 0, -1, "x" * 64, 2**53 - 1, "é" * 64, "🦊" * 64])
def test_id_is_up_to_64_characters_or_an_integer_below_2_to_the_53(frame_id: str | int):
    assert decode(json.dumps({"event": "e", "id": frame_id})).id == frame_id


@pytest.mark.parametrize("frame_id", ["x" * 65, 2**53, -(2**53), 10**30, 1.5, True, [], {}])
def test_other_ids_are_an_invalid_envelope(frame_id: object):
    with pytest.raises(InvalidFrame) as caught:
        decode(json.dumps({"event": "e", "id": frame_id}))
    assert caught.value.code == ErrorCode.INVALID_ENVELOPE
    assert caught.value.id is None
    assert caught.value.message.startswith("id: ")


@pytest.mark.parametrize(
    "text", ["", " ", "{", "{'event': 'e'}", "hello", '{"event": "e"} x', "NaN", "\ud800"]
)
def test_what_is_no_json_is_invalid_json(text: str):
    with pytest.raises(InvalidFrame) as caught:
        decode(text)
    assert caught.value.code == ErrorCode.INVALID_JSON


@pytest.mark.parametrize("text", ["[]", "1", '"heartbeat"', "null", "{}", '{"event": 1}', '{"event": null}'])
def test_json_that_is_no_frame_is_an_invalid_envelope(text: str):
    with pytest.raises(InvalidFrame) as caught:
        decode(text)
    assert caught.value.code == ErrorCode.INVALID_ENVELOPE


@pytest.mark.parametrize("data", ["[]", "1", '"x"', "true", "[{}]"])
def test_data_that_is_no_object_is_an_invalid_envelope_with_its_id(data: str):
    with pytest.raises(InvalidFrame) as caught:
        decode(f'{{"event": "e", "id": "a", "data": {data}}}')
    assert (caught.value.code, caught.value.id) == (ErrorCode.INVALID_ENVELOPE, "a")
    assert caught.value.message == "data: expected object"


def test_error_of_an_invalid_envelope_carries_its_id_where_it_can_be_read():
    with pytest.raises(InvalidFrame) as caught:
        decode('{"event": 1, "id": 9}')
    assert caught.value.id == 9
    assert caught.value.message == "event: expected str, got int"


def test_message_of_an_invalid_envelope_names_the_key_that_is_missing():
    with pytest.raises(InvalidFrame, match=r"^event: required$"):
        decode("{}")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"event": "e", "data": ' + '{"a":' * 100_000,
        '{"event": "e", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"event": 1, "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"event": "e", "x": ' + "[" * 128 + "]" * 128 + "}",
    ],
    ids=["arrays", "data", "unknown key", "beside another mistake", "one level"],
)
def test_deep_nesting_is_refused_and_does_no_harm(text: str):
    with pytest.raises(InvalidFrame, match="nested more than 128 levels") as caught:
        decode(text)
    assert caught.value.code == ErrorCode.INVALID_JSON


def test_frame_may_be_nested_as_deeply_as_is_said():
    assert decode('{"event": "e", "x": ' + "[" * 127 + "]" * 127 + "}").event == "e"


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
@example('{"event":"\ud800"}')
@example('{"event":"\\ud800"}')
@example('{"event":"e","id":"\\ud800"}')
@example('{"event":"e","id":1e400}')
def test_any_text_is_a_frame_or_invalid(text: str):
    result = outcome(text)
    assert isinstance(result, Envelope) or result in {ErrorCode.INVALID_JSON, ErrorCode.INVALID_ENVELOPE}


@given(JSON | st.fixed_dictionaries({"event": JSON}, optional={"data": JSON, "id": JSON}))
def test_any_json_is_a_frame_or_an_invalid_envelope(value: Any):
    result = outcome(json.dumps(value))
    if isinstance(result, Envelope):
        assert result.event == value["event"]
    else:
        assert result == ErrorCode.INVALID_ENVELOPE


@pytest.mark.parametrize(
    ("escaped", "read"),
    [
        (r"\ud83d", "\ufffd"),
        (r"\uDE00!", "\ufffd!"),
        (r"\ud83d\u0041", "\ufffdA"),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\\ud83d", r"\ud83d"),
        (r"\\\ud83d", "\\\ufffd"),
    ],
)
def test_half_of_a_surrogate_pair_is_read_as_a_replacement_character(escaped: str, read: str):
    frame = decode(f'{{"event": "{escaped}", "id": "{escaped}", "data": {{"{escaped}": "{escaped}"}}}}')
    assert (frame.event, frame.id) == (read, read)
    assert json.loads(bytes(frame.data)) == {read: read}


# --- Server frames -----------------------------------------------------------------------------------


def test_server_frame_holds_what_it_is_given():
    frame = json.loads(encode("thread:message", {"a": 1}, room="thread:42", offset="9"))
    assert frame == {"event": "thread:message", "room": "thread:42", "offset": "9", "data": {"a": 1}}


def test_server_frame_leaves_out_what_is_not_given():
    assert json.loads(encode("auth:expiring", {})) == {"event": "auth:expiring", "data": {}}


@pytest.mark.parametrize("frame_id", ["a", "", 0, 7])
def test_answer_carries_the_id(frame_id: str | int):
    assert json.loads(encode("ack", {}, id=frame_id))["id"] == frame_id


def test_half_of_a_surrogate_pair_is_written_as_a_replacement_character():
    frame = json.loads(encode("ack", {"a\ud83d": ["b\udc00"]}, id="\ud83d"))
    assert frame == {"event": "ack", "id": "\ufffd", "data": {"a\ufffd": ["b\ufffd"]}}
    assert json.loads(b'{"x":"' + frame_tail({"a": "\ud83d"})) == {"x": "", "data": {"a": "\ufffd"}}


def test_ids_are_encoded_as_strings():
    assert json.loads(encode("e", {"user_id": Id("7")}))["data"] == {"user_id": "7"}


def test_raw_json_passes_through_untouched():
    assert '"price":1.10' in encode("e", {"price": msgspec.Raw(b"1.10")})


# --- Times -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1.5, "1970-01-01T00:00:01.500Z"),
        (951782400, "2000-02-29T00:00:00.000Z"),
    ],
)
def test_times_are_iso_8601_in_utc_to_the_millisecond(seconds: float, text: str):
    assert iso(seconds) == text


@given(st.floats(0, 4e9))
def test_times_can_be_read_back(seconds: float):
    assert abs(datetime.fromisoformat(iso(seconds)).astimezone(UTC).timestamp() - seconds) < 0.002
