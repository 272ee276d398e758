"""Requests over a real socket: what one connection can make the server read, keep and wait for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from realtime.auth.issuing import issue
from tests.inprocess import PATIENCE
from tests.server.serving import CLOSE, HEALTH, UPGRADE, answer, errors, handshake_head


async def test_plain_http_is_served_on_the_same_port_and_the_server_is_not_named(port: int):
    answered = await answer(port, HEALTH + CLOSE + b"\r\n")
    assert answered.startswith(b"HTTP/1.1 200")
    assert b"server:" not in answered.lower()


TOO_LARGE = (
    b"".join(b"X-%d: y\r\n" % n for n in range(500)),
    b"X: y\r\n" * 100,
    b"X: " + b"y" * 65_536 + b"\r\n",
    b"X: " + b"y" * 500_000 + b"\r\n",
    b"".join(b"X: %b\r\n" % (b"y" * 10_000) for _ in range(7)),
)


@pytest.mark.parametrize("rest", [b"\r\n", b""], ids=["complete", "without end"])
@pytest.mark.parametrize(
    "beginning", [HEALTH, b"GET /hub/ HTTP/1.1\r\n" + UPGRADE], ids=["http", "websocket"]
)
async def test_head_that_is_too_large_is_refused_at_once(port: int, beginning: bytes, rest: bytes, caplog):
    for headers in TOO_LARGE:
        answered = await answer(port, beginning + headers + rest)
        assert answered.startswith(b"HTTP/1.1 431 ")
        assert answered.count(b"HTTP/1.1") == 1
    assert errors(caplog) == []


LONG_LISTS = {
    "connection": UPGRADE.replace(b"Connection: ", b"Connection: " + b"a, " * 20_000),
    "upgrade": UPGRADE.replace(b"Upgrade: ", b"Upgrade: " + b"," * 60_000),
    "subprotocols": UPGRADE + b"Sec-WebSocket-Protocol: a%b\r\n" % (b",a" * 30_000),
    "subprotocols that fit a short head": UPGRADE + b"Sec-WebSocket-Protocol: a%b\r\n" % (b",a" * 101),
    "many lines of subprotocols": UPGRADE + b"Sec-WebSocket-Protocol: a, b, c\r\n" * 60,
}


@pytest.mark.parametrize("headers", LONG_LISTS.values(), ids=LONG_LISTS)
async def test_handshake_whose_lists_have_very_many_items_is_refused(port: int, headers: bytes, caplog):
    answered = await answer(port, b"GET /hub/ HTTP/1.1\r\n" + headers + b"\r\n")
    assert answered.startswith(b"HTTP/1.1 431 ")
    assert errors(caplog) == []


async def test_hundred_subprotocols_may_be_offered(port: int):
    token = issue(user_id="7", role="attendant").encode()
    offer = b"Sec-WebSocket-Protocol: realtime.v1, bearer.%b%b\r\n" % (token, b", a" * 98)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + offer + b"\r\n")
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
    writer.close()


async def test_verdict_and_handshake_take_the_same_heads(port: int):
    """A large cookie or a long token works for both, or for neither."""
    token = issue(user_id="7", role="attendant").encode()
    head = b"GET /hub/ HTTP/1.1\r\nAuthorization: Bearer %b\r\nCookie: %b\r\n" % (token, b"x" * 60_000)
    assert (await answer(port, head + CLOSE + b"Host: h\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + UPGRADE + b"\r\n")
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
    writer.close()


async def test_head_of_a_hundred_lines_is_served(port: int):
    answered = await answer(port, HEALTH + b"X: y\r\n" * 97 + CLOSE + b"\r\n")
    assert answered.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("behind", [(HEALTH + b"\r\n") * 5000, b"\x00\xff" * 50_000, b"\r\n" * 100_000])
async def test_only_one_request_at_a_time_is_read(port: int, behind: bytes):
    answered = await answer(port, HEALTH + b"\r\n" + behind)
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert (
        answered.count(b"HTTP/1.1 200 ") == 1
    )  # blank lines begin no request: too many of them get 431 behind it
    assert b"connection: close\r\n" in answered


async def test_handshake_by_an_older_http_is_refused(port: int):
    answered = await answer(port, b"GET /hub/ HTTP/1.0\r\n" + UPGRADE + b"\r\n")
    assert answered.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("handshake_seconds", [0.3])
async def test_line_break_behind_a_request_does_not_cut_its_answer(port: int, monkeypatch):
    async def slowly(self: Any) -> tuple[str, ...]:
        await asyncio.sleep(1.0)
        return ()

    monkeypatch.setattr("realtime.server.readiness.Readiness.reasons", slowly)
    answered = await answer(port, b"GET /readyz HTTP/1.1\r\nHost: h\r\n" + CLOSE + b"\r\n\r\n")
    assert answered.startswith(b"HTTP/1.1 200 ")


async def test_requests_one_after_the_other_share_a_connection(port: int):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(PATIENCE):
        for _ in range(3):
            writer.write(HEALTH + b"\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            while not (await reader.readuntil(b"}")).endswith(b'alive"}'):
                pass
    writer.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000000\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx",
        b"POST /healthz HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"PUT /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n",
        b"GET /hub/ HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n",
        b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + b"Content-Length: 9\r\n\r\n",
    ],
    ids=["large", "small", "chunked", "expected", "verdict", "handshake"],
)
async def test_no_body_is_read(port: int, request_: bytes):
    answered = await answer(port, request_ + b"x" * 100_000)
    assert answered.startswith(b"HTTP/1.1 413 ")
    assert answered.count(b"HTTP/1.1 ") == 1


async def test_upgrade_to_something_else_is_not_made(port: int, caplog):
    answered = await answer(
        port, HEALTH + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI * HTTP/2.0\r\n\r\n"
    )
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert errors(caplog) == []


@pytest.mark.parametrize("handshake_seconds", [0.5])
async def test_request_that_never_ends_is_cut(port: int):
    whole = handshake_head() + b"\r\n"
    beginnings = [b"", b"\r\n", b"G", b"GET /hub/ HT", b"GET /hub/ HTTP/1.1\r\nHost: h\r\n", whole[:-1]]
    started = asyncio.get_running_loop().time()
    assert {*await asyncio.gather(*(answer(port, beginning) for beginning in beginnings))} == {b""}
    assert asyncio.get_running_loop().time() - started > 0.4


@pytest.mark.parametrize("handshake_seconds", [0.5])
@pytest.mark.parametrize("again", [b"\r\n", b"GET /healthz HT"])
async def test_second_request_that_never_ends_is_cut(port: int, again: bytes):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEALTH + b"\r\n")
    async with asyncio.timeout(PATIENCE):
        await reader.readuntil(b"alive")
        while True:
            writer.write(again[:1])
            again = again[1:] or b"x"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    if (await reader.read(100)) == b"":
                        break
    writer.close()
