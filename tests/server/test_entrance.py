"""The two ways in: what is read of a handshake at once, and what is parsed, has the same effect."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY
from websockets.frames import Opcode

from realtime.auth.issuing import issue
from realtime.connections import admission
from realtime.connections.registry import ConnectionRegistry
from realtime.server import entrance, heads
from tests.inprocess import PATIENCE, eventually
from tests.server.serving import UPGRADE, errors, frame, serving

ORDINARY = UPGRADE.replace(b"AAAAAAAAAAAAAAAAAAAAAA==", b"dGhlIHNhbXBsZSBub25jZQ==")


def token(**changes: Any) -> bytes:
    return issue(**{"user_id": "7", "role": "attendant", **changes}).encode()


def head(path: bytes = b"/hub/", *lines: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path, ORDINARY, b"".join(b"%b\r\n" % line for line in lines))


def bearer(text: bytes) -> bytes:
    return b"Authorization: Bearer " + text


CASES: dict[str, Callable[[], bytes]] = {
    "accepted": lambda: head(b"/hub/", bearer(token())),
    "without a slash": lambda: head(b"/hub", bearer(token())),
    "portal": lambda: head(b"/portal/", bearer(token(role="customer", threads=["1"]))),
    "resuming": lambda: head(b"/hub/?resume=1", bearer(token())),
    "subprotocol": lambda: head(b"/hub/", b"Sec-WebSocket-Protocol: realtime.v1, bearer." + token()),
    "another subprotocol": lambda: head(b"/hub/", b"Sec-WebSocket-Protocol: chat", bearer(token())),
    "extension": lambda: head(b"/hub/", b"Sec-WebSocket-Extensions: permessage-deflate", bearer(token())),
    "allowed origin": lambda: head(b"/hub/", b"Origin: http://page.test", bearer(token())),
    "own origin": lambda: head(b"/hub/", b"Origin: http://h", bearer(token())),
    "another origin": lambda: head(b"/hub/", b"Origin: http://elsewhere.test", bearer(token())),
    "no token": lambda: head(b"/hub/"),
    "two tokens": lambda: head(b"/hub/", bearer(token()), b"Sec-WebSocket-Protocol: bearer." + token()),
    "basic": lambda: head(b"/hub/", b"Authorization: Basic abc"),
    "wrong token": lambda: head(b"/hub/", bearer(token()[:-5] + b"AAAAA")),
    "expired token": lambda: head(b"/hub/", bearer(token(ttl=-5))),
    "another role": lambda: head(b"/portal/", bearer(token())),
    "no namespace": lambda: head(b"/nowhere/", bearer(token())),
    "root": lambda: head(b"/", bearer(token())),
}
VARIABLE = re.compile(
    rb'"connection_id":"[0-9a-f]+"|"expires_at":"[^"]+"|"offset":"[^"]+"|[0-9]{16}|'
    rb"(?i:date): [^\r]*|(?i:content-length): [0-9]+|was [0-9.]+ s ago"
)
"""What differs between two handshakes."""


async def received(port: int, *pieces: bytes, stays: bool = False) -> bytes:
    """All that the server sends until it closes, or until it has answered a frame of the client."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)  # else two pieces could arrive as one
    async with asyncio.timeout(PATIENCE):
        answer = await reader.readuntil(b"\r\n\r\n")
        if answer.startswith(b"HTTP/1.1 101 "):
            writer.write(frame('{"event":"a:b","id":"last"}') + frame("", Opcode.CLOSE))
        with contextlib.suppress(ConnectionError):
            answer += await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: stays or not ConnectionRegistry.current().connections)
    return VARIABLE.sub(b"...", answer)


def metrics() -> dict[Any, float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for metric in REGISTRY.collect()
        if metric.name.startswith(
            ("realtime_handshakes", "realtime_connections", "realtime_users", "realtime_closes")
        )
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def lines(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """What the server has logged, without what names a single connection."""
    facts = ("namespace", "code", "reason", "role", "by", "count", "user")
    return [
        (
            record.name,
            record.levelno,
            record.getMessage(),
            [_same(getattr(record, name, None)) for name in facts],
        )
        for record in caplog.records
        if record.name.startswith(("realtime.connections", "realtime.server", "uvicorn"))
        and record.getMessage() != "instance started"
    ]


def _same(fact: object) -> object:
    return re.sub(r"was [0-9.]+ s ago", "", fact) if isinstance(fact, str) else fact


async def effects(port: int, caplog: pytest.LogCaptureFixture, *pieces: bytes, stays: bool = False) -> Any:
    """What the server sends, counts and logs. `stays`: another connection is open, and stays open."""
    caplog.clear()
    before = metrics()
    answer = await received(port, *pieces, stays=stays)
    after = metrics()
    changed = {
        name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)
    }
    return answer, changed, lines(caplog)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each connection, whether its head was read at once."""
    taken: list[bool] = []

    def read(data: bytes) -> Any:
        found = read_handshake(data)
        taken.append(found is not None)
        return found

    read_handshake = heads.read_handshake
    monkeypatch.setattr(entrance, "read_handshake", read)
    return taken


@pytest.mark.parametrize("case", CASES)
async def test_head_that_is_read_at_once_has_the_effect_of_one_that_is_parsed(
    port: int, case: str, ways: list[bool], caplog, settings
):
    settings.REALTIME = {**settings.REALTIME, "ALLOWED_ORIGINS": ["http://page.test"]}
    data = CASES[case]()
    with caplog.at_level(logging.INFO):
        await received(port, data)  # the first may leave something behind, as a room
        at_once = await effects(port, caplog, data)
        parsed = await effects(port, caplog, data[:20], data[20:])
    assert ways == [True, True, False]
    assert at_once == parsed
    assert errors(caplog) == []


@pytest.mark.parametrize("limit", [{"CONNECTIONS": 1}, {"HANDSHAKES": 1e-9}], ids=str)
async def test_limits_of_the_process_hold_on_both_ways(
    port: int, ways: list[bool], caplog, limit: dict[str, float], monkeypatch, settings
):
    monkeypatch.setattr(admission, "LOG_SECONDS", 0.0)
    data = head(b"/hub/", bearer(token()))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await reader.readuntil(b'"connection:ready"')
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {**settings.REALTIME["LIMITS"], **limit}}
    await received(port, data, stays=True)  # what was refused before is counted with it
    at_once = await effects(port, caplog, data, stays=True)
    parsed = await effects(port, caplog, data[:20], data[20:], stays=True)
    assert ways == [True, True, True, False]
    assert at_once == parsed
    assert at_once[0].startswith(b"HTTP/1.1 503 ")
    assert b"at_capacity" in at_once[0]
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: not ConnectionRegistry.current().connections)


async def test_connection_without_a_request_does_not_hold_up_a_server_that_stops(process: str):
    async with serving() as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await eventually(lambda: server.server_state.connections)
    async with asyncio.timeout(PATIENCE):
        assert await reader.read(-1) == b""
    writer.close()
    await writer.wait_closed()
