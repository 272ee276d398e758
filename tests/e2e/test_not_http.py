"""Bytes on the port of the socket server that are no handshake, or only half of one."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

from tests.e2e.harness import PATIENCE, Stack, unique

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


UPGRADE = b"Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"


RAW = {
    "random bytes": random.Random(1).randbytes(512).replace(b"\n", b"") + b"\r\n\r\n",
    "zeros": b"\0" * 1024,
    "tls hello": bytes.fromhex("16030100c8010000c40303") + b"\x11" * 200,
    "bad request line": b"HELLO\r\n\r\n",
    "no version": b"GET /hub/\r\n\r\n",
    "bad version": b"GET /hub/ HTTP/9.9\r\n\r\n",
    "bad method": b"\xff\xfe /hub/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "non-ASCII path": b"GET /h\xc3\xbcb/ HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "latin-1 path": b"GET /\xff\xfe HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "non-ASCII path without upgrade": b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "non-ASCII query": b"GET /hub/?token=\xff\xfe HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "bad escapes": b"GET /hub/%zz%ff?token=%ff%zz%00 HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "many fields": b"GET /hub/?" + b"a=1&" * 500 + b" HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "absolute path": b"GET http://x/hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "no key": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + b"\r\n",
    "short key": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + b"Sec-WebSocket-Key: YQ==\r\n\r\n",
    "garbage key": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + b"Sec-WebSocket-Key: \xff\xfe!\r\n\r\n",
    "two keys": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + KEY + b"\r\n",
    "old version": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE.replace(b"13", b"7") + KEY + b"\r\n",
    "garbage version": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE.replace(b"13", b"\xff") + KEY + b"\r\n",
    "no version header": b"GET /hub/ HTTP/1.1\r\n"
    + UPGRADE.replace(b"Sec-WebSocket-Version: 13\r\n", b"")
    + KEY
    + b"\r\n",
    "post upgrade": b"POST /hub/ HTTP/1.1\r\nContent-Length: 3\r\n" + UPGRADE + KEY + b"\r\nabc",
    "non-ASCII header name": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"X-\xff: 1\r\n\r\n",
    "non-ASCII header value": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"X-A: \xff\xfe\r\n\r\n",
    "no colon": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"nonsense\r\n\r\n",
    "non-ASCII host": b"GET /hub/ HTTP/1.1\r\nConnection: close\r\nHost: \xff\xfe\r\n\r\n",
    "odd subprotocols": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"Sec-WebSocket-Protocol: ,;= \r\n\r\n",
    "odd extensions": b"GET /hub/ HTTP/1.1\r\n"
    + UPGRADE
    + KEY
    + b"Sec-WebSocket-Extensions: ;;=,\xff\r\n\r\n",
    "300 headers": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"X-A: 1\r\n" * 300 + b"\r\n",
    "huge header": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n",
    "huge path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "other upgrade": b"GET /hub/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "http2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "bad content length": b"POST /hub/ HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
    "chunks of garbage": b"POST /hub/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "frames right away": b"\x81\x85\x01\x02\x03\x04hello" * 20,
    "options star": b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "connect": b"CONNECT evil.test:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "half a request": b"GET /hub/ HTTP/1.1\r\nHos",
}


NOT_FOR_DAPHNE = {
    # It writes a stack trace of its own about these.
    "non-ASCII subprotocol": b"GET /hub/ HTTP/1.1\r\n"
    + UPGRADE
    + KEY
    + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
}


async def raw(port: int, sent: bytes, wait: float = 1.0) -> bytes | None:
    """Send bytes; what came back until the server hung up, None if it just waits for more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.write(sent)
        async with asyncio.timeout(wait):
            await writer.drain()
            while chunk := await reader.read(65536):
                received += chunk
    except TimeoutError:
        return received or None
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return received


async def test_server_survives_what_is_not_even_http(stack: Stack):
    requests = RAW if stack.server == "daphne" else {**RAW, **NOT_FOR_DAPHNE}
    async with stack.client("hub") as bystander:
        answers = await asyncio.gather(*(raw(stack.port, sent) for sent in requests.values()))
        for name, answer in zip(requests, answers, strict=True):
            assert not answer or answer.split(b" ")[1] not in {b"101", b"500"}, (name, answer)
        await bystander.call("heartbeat")
    assert (await stack.http("GET", "/healthz")).status == 200
    assert (await stack.handshake(token=stack.sign())).status == 101
    stack.assert_calm()


async def test_what_is_not_http_is_not_waited_for(uvicorn_stack: Stack):
    whole = {name: sent for name, sent in RAW.items() if name != "half a request"}
    # What is waited for is cut after five seconds.
    answers = await asyncio.gather(*(raw(uvicorn_stack.port, sent, wait=4) for sent in whole.values()))
    assert [name for name, answer in zip(whole, answers, strict=True) if answer is None] == []


async def test_client_that_hangs_up_in_the_middle_of_a_handshake_leaves_no_trace(stack: Stack):
    token = stack.sign(user_id=unique("u")).encode()
    request = b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"Authorization: Bearer " + token + b"\r\n\r\n"

    def knock() -> None:
        with socket.create_connection(("127.0.0.1", stack.port)) as peer:
            peer.sendall(request)

    await asyncio.gather(*(asyncio.to_thread(knock) for _ in range(20)))
    async with stack.client("hub") as client:
        await client.call("heartbeat")
    stack.assert_calm()


async def test_handshake_that_is_never_finished_is_cut(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
):
    with Stack(tmp_path_factory.mktemp("slow"), redis_url, REALTIME_LIMIT_HANDSHAKE_SECONDS="1.5") as stack:
        stack.start_sockets()
        async with stack.client("hub") as settled:
            unfinished = (
                b"",
                b"GET /hub/ HTTP/1.1\r\nHost: x\r\n",
                b"POST /hub/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab",
                b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\n",
            )
            answers = await asyncio.gather(*(raw(stack.port, sent, wait=PATIENCE) for sent in unfinished))
            assert None not in answers
            assert [answer.count(b"200 OK") for answer in answers if answer is not None] == [0, 0, 0, 1]
            await settled.call("heartbeat")
