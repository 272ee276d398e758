"""Random input from every peer, for some seconds, from a seed that a failure prints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from websockets.exceptions import ConnectionClosed

from bench.machine import resident_bytes
from realtime.protocol.catalogue import catalogue
from tests.e2e.harness import Client, Stack, unique

SECONDS = float(os.environ.get("FUZZ_SECONDS", "15"))

SCRAPS = [
    b"", b"{", b"}", b"[]", b"null", b'"', b"\\", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\r\n\r\n", b"e" * 5000,
    b"[" * 3000, b'{"a":' * 2000, b"9" * 4000, b"-1e999", b"1e-400", b"NaN", b"\\ud800", b"\\u0000",
    b'"id":"x"', b'"id":9007199254740993', b'"event":"heartbeat"', b'"event":null', b'"data":[]',
    "\U0001f388".encode(), b"__proto__", b"../../etc/passwd", b"%00", b"thread:42", b"hub.thread.42", b"*",
]  # fmt: skip


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """No limits: the server parses everything that is sent."""
    limits = {f"REALTIME_LIMIT_{name}": "0" for name in ("RATE", "INVALID_FRAMES", "HANDSHAKES")}
    with Stack(tmp_path_factory.mktemp("fuzz"), redis_url, **limits) as stack:
        yield stack.start_all()


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("FUZZ_SEED", time.time_ns() % 2**32))
    print(f"FUZZ_SEED={seed}")  # noqa: T201
    return random.Random(seed)


@contextlib.asynccontextmanager
async def undisturbed(stack: Stack) -> AsyncIterator[Client]:
    """Another client gets what is published, before, during and after; the server's memory stays bounded."""
    thread = unique("th")
    server = next(process for process in stack.processes if process.name == "runsockets")
    before = resident_bytes(server.pid)
    async with stack.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        for moment in ("before", "during"):
            stack.add("thread:message", {"thread_id": thread, "message_id": moment})
            await client.expect("thread:message", message_id=moment)
            if moment == "before":
                yield client
        stack.add("thread:message", {"thread_id": thread, "message_id": "after"})
        await client.expect("thread:message", message_id="after")
        assert (await stack.http("GET", "/readyz")).status == 200
    assert resident_bytes(server.pid) - before < 200 * 2**20


def mangled(chance: random.Random, sample: bytes) -> bytes:
    """A sample with something cut out, put in, doubled or turned over, once or a few times."""
    data = bytearray(sample)
    for _ in range(chance.randint(0, 4)):
        at = chance.randint(0, len(data))
        match chance.randint(0, 3):
            case 0:
                data[at:at] = chance.choice(SCRAPS)
            case 1:
                del data[at : at + chance.randint(1, 20)]
            case 2:
                data[at:at] = data[at : at + chance.randint(1, 200)]
            case 3 if at < len(data):
                data[at] = chance.randrange(256)
    return bytes(data)


def frames(chance: random.Random) -> bytes:
    """A frame that is nearly right."""
    data = {
        name: chance.choice(
            ["42", 42, "7", "", None, True, 1.5, {}, [], {"x": {}}, "x" * 65, "0-0", "thread:42"]
        )
        for name in chance.sample(["thread_id", "since", "token", "rooms", "position", "status", "zzz"], 3)
    }
    if chance.random() < 0.3:
        data["rooms"] = {
            chance.choice(["thread:42", "user:7", "*", "control"]): chance.choice(["1", "0", "x"])
        }
    event = chance.choice([*catalogue().client, *catalogue().server, *catalogue().control, "x:y"])
    frame = {"event": event, "data": data, "id": chance.choice([None, 1, "a", -1, 2**60, "x" * 65, {}])}
    return mangled(chance, json.dumps(frame).encode())


async def test_no_frame_harms_anybody_but_its_sender(stack: Stack, chance: random.Random):
    async with undisturbed(stack):
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            namespace = chance.choice(["hub", "portal"])
            with contextlib.suppress(ConnectionClosed):
                async with stack.client(namespace, threads=["42"]) as client:
                    for _ in range(200):
                        data = frames(chance)
                        with contextlib.suppress(UnicodeDecodeError):
                            await client.raw(data if chance.random() < 0.05 else data.decode())
                        if chance.random() < 0.01:
                            # Past the library: bytes that are no frames.
                            client.websocket.transport.write(mangled(chance, data))
                    with contextlib.suppress(AssertionError):
                        await client.call("heartbeat")
            codes = {frame["data"]["code"] for frame in client.received("error")}
            assert "internal" not in codes


def wire(chance: random.Random) -> bytes:
    """WebSocket frames of any kind, nearly right, one behind the other."""
    pieces = []
    for _ in range(chance.randint(1, 200)):
        payload = chance.choice([b"", b"x", b"\xc3", b"x" * 125, b"x" * 126, b"x" * 66_000, frames(chance)])
        opcode = chance.choice([0x1, 0x1, 0x2, 0x0, 0x9, 0xA]) | (0x80 if chance.random() < 0.7 else 0)
        size = len(payload)
        if size < 126:
            length = bytes([0x80 | size])
        else:
            length = b"\xfe" + size.to_bytes(2) if size < 65_536 else b"\xff" + size.to_bytes(8)
        pieces.append(bytes([opcode]) + length + b"\0\0\0\0" + payload)
    if chance.random() < 0.2:
        pieces.insert(chance.randint(0, len(pieces)), b"\x88\x82\0\0\0\0\x03\xe8")
    return mangled(chance, b"".join(pieces)) if chance.random() < 0.5 else b"".join(pieces)


async def test_no_bytes_behind_the_handshake_harm_anybody(stack: Stack, chance: random.Random):
    async with undisturbed(stack):
        deadline = time.monotonic() + SECONDS / 2

        async def attack() -> None:
            while time.monotonic() < deadline:
                async with stack.client("portal") as client:
                    rest = wire(chance)
                    while rest and not client.websocket.transport.is_closing():
                        size = chance.choice([1, 2, 7, 1000, 100_000])
                        client.websocket.transport.write(rest[:size])
                        rest = rest[size:] if size > 10 else rest[size:][:5000]
                        await asyncio.sleep(0)
                    client.drop()

        await asyncio.gather(*(attack() for _ in range(5)))


async def test_no_handshake_harms_anybody(stack: Stack, chance: random.Random):
    good = (
        b"GET /hub/?resume=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Protocol: realtime.v1, bearer.%b\r\nOrigin: http://app.test\r\n\r\n"
    ) % stack.token("7", "attendant").encode()
    async with undisturbed(stack):
        deadline = time.monotonic() + SECONDS

        async def attack() -> None:
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
                    writer.write(mangled(chance, good))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.3):
                            await reader.read(1000)
                    writer.close()

        await asyncio.gather(*(attack() for _ in range(20)))


async def test_no_message_on_the_bus_harms_anybody(stack: Stack, chance: random.Random):
    async with undisturbed(stack):
        deadline = time.monotonic() + SECONDS / 3
        while time.monotonic() < deadline:
            events = [*catalogue().server, *catalogue().control, *catalogue().client]
            message = {
                "event": chance.choice(events),
                "data": {
                    name: chance.choice(["42", 42, None, [], "x" * 65, {"y": 1}])
                    for name in ("thread_id", "message_id", "user_id", "namespace", "status", "jti", "exp")
                },
                chance.choice(["rooms", "namespaces", "except", "id"]): chance.choice(
                    [["thread:42"], ["hub"], "x", 7, None, ["*"], []]
                ),
            }
            raw = mangled(chance, json.dumps(message).encode())
            if chance.random() < 0.5:
                stack.redis.xadd(stack.key("stream"), {chance.choice([b"message", b"other"]): raw})
            else:
                stack.redis.publish(stack.key("events"), raw)
            await asyncio.sleep(0.001)
