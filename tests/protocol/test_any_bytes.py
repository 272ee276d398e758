"""Whatever bytes come from the bus are a message or invalid, and nothing else."""

from __future__ import annotations

import gc
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from realtime.bridge.bus_entry import BUS
from realtime.protocol.bus_message import BusMessage, InvalidMessage
from realtime.protocol.rooms import is_room

from .test_bus_message import outcome, outcome_of
from .test_envelope import JSON


@given(st.binary())
@example(b'{"event":"thread:message","data":{"thread_id":1,"message_id":"\\ud800"}}')
@example(b'{"event":"user:disconnect","data":{"user_id":1,"namespace":"\\ud800"}}')
@example(b'{"event":"token:revoke","data":{"jti":"j","exp":1' + b"0" * 400 + b"}}")
def test_any_bytes_are_a_message_or_invalid(raw: bytes):
    assert outcome(raw)


@given(
    event=st.sampled_from(
        [
            "thread:message",
            "chat:accepted",
            "queue:new",
            "user:notification",
            "user:disconnect",
            "token:revoke",
        ]
    ),
    data=JSON
    | st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("thread_id", "message_id", "user_id", "item_id", "group", "exp", "jti", "namespace"), JSON
        ),
    ),
    more=st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "rooms", "namespaces", "except"), JSON)),
)
def test_any_json_is_a_message_to_real_rooms_or_invalid(event: str, data: Any, more: dict[str, Any]):
    message = outcome_of(event, data, **more)
    if isinstance(message, BusMessage):
        assert all(is_room(room) for _, room in message.targets)


REFUSED = (
    b"{",
    b"[" * 30_000,
    b"\xff",
    b'{"event":"nonsense"}',
    b'{"event":"heartbeat"}',
    b'{"event":"thread:message","data":[]}',
    b'{"event":"thread:message","data":{"thread_id":[1]}}',
    b'{"event":"thread:message","data":{"thread_id":1,"message_id":1},"rooms":["x"]}',
)


def test_message_that_is_refused_is_forgotten_with_its_error():
    """A traceback keeps the message; in a circle with a frame it would stay until the collector comes by."""
    gc.collect()
    gc.disable()
    try:
        for raw in REFUSED:
            entry = BUS.entry(b"1-1", [b"message", raw])
            assert entry.error is not None
            assert entry.error.__traceback__ is entry.error.__cause__ is None
            assert entry.error.code == outcome(raw)
        del entry
        assert [each for each in gc.get_objects() if issubclass(type(each), InvalidMessage)] == []
    finally:
        gc.enable()
