"""What stands between: proxies that refuse, redirect or answer for themselves. Nothing is tried without a pause."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import traceback
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from realtime.client import Client, Denied
from tests.client.scripted import Refusal, ScriptedServer, reading, token
from tests.e2e.harness import PATIENCE, eventually

HTML = "<html><body>nothing here</body></html>"


@pytest.mark.parametrize(
    ("status", "pause"),
    [
        *((status, None) for status in (302, 400, 404, 429, 431, 502, 503, 504)),
        *((503, pause) for pause in ("Wed, 21 Oct 2026 07:28:00 GMT", "-5", "1.5", "²", "nan", "")),
    ],
)
async def test_answer_of_a_proxy_is_tried_again_after_a_wait(
    server: ScriptedServer, status: int, pause: str | None
):
    headers = {} if pause is None else {"Retry-After": pause}
    server.script.extend([Refusal(status, headers, HTML)])
    async with reading(server) as reader:
        lost = (await reader.heard("connection:lost")).data
        assert (lost["code"], lost["retry_in"] < 1) == (status, True)
        assert (await reader.heard("connection:refused")).data["code"] == ""
        await reader.client.connected()


@pytest.mark.parametrize("pauses", [("1", "2"), ("2", "1"), ("2", "soon")])
async def test_longest_of_the_pauses_that_server_and_proxy_ask_for_is_kept(
    server: ScriptedServer, pauses: tuple[str, ...]
):
    server.script.append(Refusal(503, [("Retry-After", pause) for pause in pauses], HTML))
    async with reading(server) as reader:
        assert 2 <= (await reader.heard("connection:lost")).data["retry_in"] < 3


async def test_pause_that_is_asked_for_has_an_end(server: ScriptedServer):
    server.script.append(Refusal(429, {"Retry-After": "9" * 400}, HTML))
    async with reading(server) as reader:
        assert (await reader.heard("connection:lost")).data["retry_in"] < 601
        async with asyncio.timeout(PATIENCE):
            await reader.client.__aexit__(None, None, None)


async def test_redirects_without_end_are_a_failed_attempt(server: ScriptedServer):
    secret = token("eyJhbGciOiJIUzI1NiJ9")
    here = Refusal(302, {"Location": f"/hub/?again={secret}"}, "")
    server.script.extend([here] * 50)
    async with reading(server, lambda: secret, reconnection_attempts=1) as reader:
        with pytest.raises(ConnectionError, match="redirects") as used_up:
            await reader.end()
        assert server.handshakes <= 22
        assert secret not in "".join(traceback.format_exception(used_up.value)) + repr(reader.events)


@asynccontextmanager
async def elsewhere() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Another origin, and what it was sent."""
    got: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as running:
        yield f"ws://127.0.0.1:{running.sockets[0].getsockname()[1]}/hub/", got


@pytest.mark.parametrize(
    "locations",
    [
        *(["http://127.0.0.1:1/login"], ["ftp://x/"], ["wss://[::1/"], ["ws://x:99999/"]),
        *(["ws://a..b/"], [f"ws://{'a' * 64}/"], ["/hub/", "/hub/"]),
    ],
)
async def test_redirect_to_what_is_no_websocket_is_a_failed_attempt(
    server: ScriptedServer, locations: list[str]
):
    server.script.append(Refusal(302, [("Location", location) for location in locations], ""))
    async with reading(server) as reader:
        assert "redirects" in (await reader.heard("connection:lost")).data["reason"]
        await reader.client.connected()


async def test_redirect_to_another_origin_does_not_take_the_token_there(server: ScriptedServer):
    secret = token("eyJhbGciOiJIUzI1NiJ9")
    async with elsewhere() as (url, got):
        server.script.append(Refusal(307, {"Location": url}, ""))
        async with reading(server, lambda: secret) as reader:
            await reader.heard("connection:lost")
            await reader.client.connected()
        assert secret.encode() not in b"".join(got)


async def test_failed_attempts_leave_no_task_no_socket_and_no_warning(server: ScriptedServer):
    server.script.extend([Refusal(503, {}, HTML), Refusal(404, {}, HTML), "drop"] * 3)
    before = asyncio.all_tasks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with reading(server) as reader:
            await reader.client.connected()
            async with asyncio.timeout(PATIENCE):
                await reader.client.__aexit__(None, None, None)
        gc.collect()
    ours = {task for task in asyncio.all_tasks() - before if task.get_name().startswith("client")}
    assert await eventually(lambda: not ours)


@asynccontextmanager
async def dripping() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A server that refuses each handshake with a bare 403, and whose plain answer never ends."""
    is_dripping = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            asked = await reader.readuntil(b"\r\n\r\n")
            if b"upgrade: websocket" in asked.lower():
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 60000\r\n\r\n")
                while not writer.is_closing():
                    is_dripping.set()
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.05)
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as running:
        yield f"ws://127.0.0.1:{running.sockets[0].getsockname()[1]}/hub/", is_dripping
        running.close()
        await eventually(lambda: all(writer.transport.is_closing() for writer in writers))
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_reason_that_never_ends_is_not_waited_for():
    async with (
        dripping() as (url, is_dripping),
        Client(url, lambda: "x", connect_timeout=1, reconnection_attempts=0) as client,
    ):
        with pytest.raises((Denied, ConnectionError)):
            async with asyncio.timeout(PATIENCE):
                await client.connected()
        assert is_dripping.is_set()
        async with asyncio.timeout(PATIENCE):  # as `asyncio.run` does in the end
            await asyncio.get_running_loop().shutdown_default_executor()


@pytest.mark.parametrize(
    "answer", [b"", b"\x00\xff", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
async def test_reason_that_is_no_http_is_that_of_the_refusal(answer: bytes):
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        writer.write(refusal if b"upgrade: websocket" in asked.lower() else answer)
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as running:
        url = f"ws://127.0.0.1:{running.sockets[0].getsockname()[1]}/hub/"
        async with Client(url, lambda: "x") as client:
            with pytest.raises(Denied, match="403 Forbidden"):
                await asyncio.wait_for(client.connected(), PATIENCE)
