"""Sends all published bytes to every socket, joined to one write, without rooms, rights or checks."""

from __future__ import annotations

import asyncio
import os

import hiredis
import uvloop

from bench.frames import client_frame, parse, server_frame

CLIENTS: set[asyncio.Transport] = set()
ACCEPT = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
READY = server_frame(b'{"event":"connection:ready","data":{}}')
ACK = server_frame(b'{"event":"ack","id":1,"data":{}}')


class Client(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        CLIENTS.add(self.transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET"):
            self.transport.write(ACCEPT + READY)
            return
        for _, payload, _ in parse(data, masked=True):
            if b"join:thread" in payload:
                self.transport.write(ACK)
            elif b"typing:" in payload:
                self.transport.write(client_frame(payload))

    def connection_lost(self, exc: Exception | None) -> None:
        CLIENTS.discard(self.transport)


class Subscription(asyncio.Protocol):
    def __init__(self) -> None:
        self.replies = hiredis.Reader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(b"SUBSCRIBE bench\r\n")  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.replies.feed(data)
        frames = []
        while (reply := self.replies.gets()) is not False:
            if reply[0] == b"message":
                frames.append(server_frame(reply[2]))
        if frames:
            joined = b"".join(frames)
            for client in CLIENTS:
                client.write(joined)


async def main() -> None:
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(Subscription, os.environ["BENCH_REDIS"])
    server = await loop.create_server(Client, "127.0.0.1", int(os.environ["BENCH_PORT"]), backlog=4096)
    print("ready", flush=True)  # noqa: T201
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
