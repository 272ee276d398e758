"""The floods of `make attack`, in a process of their own: it reads jobs, a line each, and answers what they cost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec
import redis.asyncio

from bench.frames import Opcode, client_frame
from tests.faults.pressing import Peer, Pressing, Raw, Spent

CHUNK = 256 * 1024
"""Bytes that are written at once where there is no end."""
FLOOD = 512 * 1024
"""Bytes that a connection sends at once before it waits until it is closed."""
MASK = bytes(4)
HALF = "\ud83d"
"""Half of an emoji: `json.dumps` writes it as an escape."""
BUS_SECONDS = 0.02
"""Between two odd messages on the bus, which is trusted and therefore has no limit."""


class Job(msgspec.Struct):
    """One flood against one system. The tokens are those of the attackers."""

    flood: str
    seconds: float
    port: int
    redis_url: str
    stream: str
    customers: list[str]
    """Of twenty customers with no thread."""
    member: str
    """Of a customer with one thread, `thread`."""
    thread: str
    many: str
    """Of a customer with the threads of `threads`."""
    threads: list[str]
    half: str
    """Of an attendant whose name has half of an emoji in it."""


Attack = Callable[["Attackers", int], Awaitable[None]]
P = TypeVar("P", bound=Pressing)


@dataclass(frozen=True)
class Flood:
    """How many attack at the same time, and what each does, again and again. None has a connection for itself."""

    attackers: int
    attack: Attack


class Attackers:
    """All who take part in one flood."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.spent = Spent()
        self._open = 0

    async def flood(self) -> Spent:
        """Attack for as long as the job says."""
        flood = FLOODS[self.job.flood]
        tasks = [asyncio.create_task(self._again(flood.attack, number)) for number in range(flood.attackers)]
        _, going_on = await asyncio.wait(tasks, timeout=self.job.seconds)
        while going_on:  # redis-py swallows a cancellation now and then
            for task in going_on:
                task.cancel()
            _, going_on = await asyncio.wait(going_on, timeout=0.5)
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        return self.spent

    async def _again(self, attack: Attack, number: int) -> None:
        """Whenever a connection was cut or refused, there is a next one."""
        while True:
            with contextlib.suppress(OSError, AssertionError):
                await attack(self, number)
            await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def connected(self, protocol: P, *, narrow: bool = False) -> AsyncIterator[P]:
        """A connection. For a `narrow` one the kernels keep next to nothing."""
        wire = socket.socket()
        wire.setblocking(False)
        if narrow:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(wire, ("127.0.0.1", self.job.port))
        await loop.create_connection(lambda: protocol, sock=wire)
        self._open += 1
        self.spent.connections += 1
        self.spent.most_open = max(self.spent.most_open, self._open)
        try:
            yield protocol
        finally:
            self._open -= 1
            if not protocol.is_over:
                protocol.transport.abort()

    @contextlib.asynccontextmanager
    async def admitted(
        self, number: int, token: str, namespace: str = "portal", *, narrow: bool = False
    ) -> AsyncIterator[Peer]:
        """A WebSocket, each attacker's from an address of its own."""
        async with self.connected(Peer(self.spent), narrow=narrow) as peer:
            await peer.press(handshake(address(number), token, namespace))
            await peer.event("connection:ready")
            yield peer


def address(number: int) -> str:
    """An attacker's, as a proxy tells it."""
    return f"203.0.113.{number + 1}"


def request(path: str, sender: str, *headers: str, method: str = "GET") -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"X-Forwarded-For: {sender}", *headers)
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def handshake(sender: str, token: str, namespace: str = "portal") -> bytes:
    return request(
        f"/{namespace}/",
        sender,
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"Authorization: Bearer {token}",
    )


def text(event: str, data: dict[str, Any], **more: Any) -> bytes:
    return client_frame(json.dumps({"event": event, "data": data, **more}).encode())


# --- Frames ------------------------------------------------------------------------------------------


async def at_once(attackers: Attackers, number: int, *, frame: bytes, first: bytes = b"") -> None:
    """512 KiB of frames at once, until the connection is closed."""
    async with attackers.admitted(number, attackers.job.customers[number]) as peer:
        await peer.press(first + frame * (FLOOD // len(frame)))
        await peer.ended.wait()


async def without_end(attackers: Attackers, number: int, *, frame: bytes) -> None:
    async with attackers.admitted(number, attackers.job.customers[number]) as peer:
        while True:
            await peer.press(frame * (CHUNK // len(frame)))


async def unread(attackers: Attackers, number: int) -> None:
    """Pings, and what answers them is never read."""
    async with attackers.admitted(number, attackers.job.customers[number], narrow=True) as peer:
        peer.stop_reading()
        while True:
            await peer.press(client_frame(b"x" * 125, Opcode.PING) * 100)


# --- HTTP --------------------------------------------------------------------------------------------


async def endless(attackers: Attackers, number: int, *, first: str = "", again: bytes) -> None:
    """The same again and again after the beginning of a request."""
    async with attackers.connected(Raw(attackers.spent)) as raw:
        await raw.press(first.encode())
        while True:
            await raw.press(again * (CHUNK // len(again)))


async def pipelined(attackers: Attackers, number: int) -> None:
    await endless(attackers, number, again=request("/healthz", address(number)))


async def body(attackers: Attackers, number: int) -> None:
    head = request("/healthz", address(number), "Content-Length: 100000000000", method="POST")
    await endless(attackers, number, first=head.decode(), again=b"xxxx")


async def one_by_one(attackers: Attackers, number: int, *, data: bytes) -> None:
    """One request after the other."""
    while True:
        async with attackers.connected(Raw(attackers.spent)) as raw:
            await raw.press(data)
            await raw.answered.wait()


async def asked(attackers: Attackers, number: int, *, path: str) -> None:
    """All from one address, which has soon used up what it may."""
    await one_by_one(attackers, number, data=request(path, address(0), "Connection: close"))


async def refused_handshakes(attackers: Attackers, number: int) -> None:
    """The same with handshakes; the first few are let in, and end at once."""
    await one_by_one(attackers, number, data=handshake(address(0), attackers.job.customers[number]))


# --- What frames ask for -----------------------------------------------------------------------------


async def refused_joins(attackers: Attackers, number: int) -> None:
    async with attackers.admitted(number, attackers.job.customers[number]) as peer:
        for thread in itertools.count():
            await peer.press(text("join:thread", {"thread_id": f"other{thread}"}))


async def resumes(attackers: Attackers, number: int) -> None:
    """Three thousand rooms in each."""
    frame = text("resume", {"rooms": {f"thread:{room}": "5" for room in range(3000)}})
    async with attackers.admitted(number, attackers.job.customers[number]) as peer:
        while True:
            await peer.press(frame)


async def replays(attackers: Attackers, number: int) -> None:
    """The same 200 KB of a thread, again and again."""
    job = attackers.job
    async with attackers.admitted(number, job.member) as peer:
        since = (await peer.call("join:thread", {"thread_id": job.thread}))["offset"]
        async with _backbone(job) as client:
            for each in range(100):
                data = {"thread_id": job.thread, "message_id": each, "body": "x" * 2000}
                await client.xadd(job.stream, {"message": message(data)})
        frame = text("join:thread", {"thread_id": job.thread, "since": since})
        while True:
            await peer.press(frame)


async def refreshes(attackers: Attackers, number: int) -> None:
    """In 199 threads, entered as fast as the limit permits."""
    job = attackers.job
    async with attackers.admitted(number, job.many) as peer:
        for entered, thread in enumerate(job.threads):
            await peer.press(text("join:thread", {"thread_id": thread}))
            await asyncio.sleep(0 if entered < 90 else 1 / 45)
        while True:
            await peer.press(text("auth:refresh", {"token": job.many}))


# --- Odd values --------------------------------------------------------------------------------------


async def halves(attackers: Attackers, number: int) -> None:
    """Half of an emoji in the name of an attendant, in frames and on the bus."""
    job, thread = attackers.job, f"half{number}"
    async with attackers.admitted(number, job.half, "hub") as peer, _backbone(job) as client:
        await peer.press(text("join:thread", {"thread_id": thread}))
        for _ in range(50):
            await peer.press(text("typing:start", {"thread_id": thread, HALF: HALF}))
            await peer.press(text("cursor:move", {"thread_id": thread, "position": {"at": HALF, HALF: 1}}))
            await peer.press(text(f"typing:{HALF}", {"thread_id": HALF}, id=HALF))
            odd = {"thread_id": thread, "message_id": HALF, "body": HALF}
            await client.xadd(job.stream, {"message": message(odd, id=HALF)})
            await asyncio.sleep(BUS_SECONDS)


ODD: list[bytes] = [
    *(b"[" * 30_000, b'{"a":' * 10_000, b"null", b"[]", b"{}", b"NaN", b'"', b"{", b"", b"\0", b"9" * 20_000),
    *(b'{"event":1e999999}', b'{"event":null}', b'{"event":"heartbeat","id":9007199254740993}'),
    b'{"event":"heartbeat","data":[1]}',
    b'{"event":"resume","data":{"rooms":{"thread:*":"x","../..":null}}}',
    b'{"event":"cursor:move","data":{"thread_id":"1","position":' + b"9" * 20_000 + b"}}",
    b'{"event":"join:thread","data":{"thread_id":' + b"[" * 20_000 + b"}}",
]


async def odd_json(attackers: Attackers, number: int) -> None:
    """To the socket, and to the bus as it is."""
    job = attackers.job
    async with attackers.admitted(number, job.customers[number]) as peer, _backbone(job) as client:
        for payload in itertools.cycle(ODD):
            await client.xadd(job.stream, {"message": payload})
            await peer.press(client_frame(payload))
            await asyncio.sleep(BUS_SECONDS)


@contextlib.asynccontextmanager
async def _backbone(job: Job) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(job.redis_url)
    try:
        yield client
    finally:
        await client.aclose()


def message(data: dict[str, Any], **more: Any) -> str:
    return json.dumps({"event": "thread:message", "data": data, **more})


PING = b"\x89\x80" + MASK
GET = "GET /healthz HTTP/1.1\r\n"

FLOODS = {
    "empty pings": Flood(20, partial(at_once, frame=PING)),
    "pings without end": Flood(4, partial(without_end, frame=PING)),
    "one-byte texts": Flood(20, partial(at_once, frame=b"\x81\x81" + MASK + b"x")),
    "one-byte fragments": Flood(
        20, partial(at_once, first=b"\x01\x81" + MASK + b"x", frame=b"\x00\x81" + MASK + b"x")
    ),
    "pongs": Flood(20, partial(at_once, frame=b"\x8a\x80" + MASK)),
    "empty binaries": Flood(20, partial(at_once, frame=b"\x82\x80" + MASK)),
    "unread pongs": Flood(20, unread),
    "short header lines": Flood(4, partial(endless, first=GET, again=b"a:\r\n")),
    "one header line": Flood(1, partial(endless, first=GET + "X: ", again=b"xxxx")),
    "pipelined GETs": Flood(4, pipelined),
    "POST of 100 GB": Flood(1, body),
    "GET /healthz": Flood(4, partial(asked, path="/healthz")),
    "GET /readyz": Flood(4, partial(asked, path="/readyz")),
    "GET /asyncapi.json": Flood(4, partial(asked, path="/asyncapi.json")),
    "refused handshakes": Flood(4, refused_handshakes),
    "refused joins": Flood(1, refused_joins),
    "resumes of 3,000 rooms": Flood(1, resumes),
    "the same replay": Flood(1, replays),
    "auth:refresh in 199 threads": Flood(1, refreshes),
    "lone surrogates": Flood(4, halves),
    "odd JSON": Flood(4, odd_json),
}


async def serve() -> None:
    """Carry out jobs until there are no more."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # a refused handshake is what the attackers expect
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        spent = await Attackers(msgspec.json.decode(line, type=Job)).flood()
        sys.stdout.write(msgspec.json.encode(spent).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve())
