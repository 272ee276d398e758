"""A network whose link can be cut, and that counts what passes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

from tests.faults.proxy import Connect

CHUNK = 65536


class Network:
    """Passes bytes on to a server; while it is cut, there are no connections, and none can be made."""

    def __init__(self, target: Connect) -> None:
        self._target = target
        self._links: set[asyncio.Task[None]] = set()
        self._is_cut = False
        self.delay = 0.0
        """Seconds that everything takes, in both directions."""
        self.upload_rate = 0
        """Bytes a second to the server, over all connections; 0: as fast as they come."""
        self.uploaded = 0
        """Bytes that have passed to the server."""
        self.round_trips = 0
        """How often something went to the server after an answer had come on the same connection."""
        self.keeps_subscriptions_waiting = False
        """Nothing comes by connections that have subscribed to something."""
        self.ends_with_an_answer = False
        """The next answer to a command is the last thing that passes: then the network is cut."""
        self._cutting: asyncio.Task[None] | None = None
        self._upload = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._is_cut = True
        links = tuple(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    def mend(self) -> None:
        """Let connections be made again."""
        self._is_cut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.close()
            return
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        ends = [writer]
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there, back = await self._target()
            ends.append(back)
            answered, subscribed = asyncio.Event(), asyncio.Event()
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._up(reader, back, answered, subscribed))
                ways.create_task(self._down(there, writer, answered, subscribed))
                await self._either_ends(there, reader)
                raise asyncio.CancelledError
        for end in ends:
            end.transport.abort()
        self._links.discard(link)

    @staticmethod
    async def _either_ends(*readers: asyncio.StreamReader) -> None:
        while not any(reader.at_eof() for reader in readers):
            await asyncio.sleep(0.01)

    async def _up(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answered: asyncio.Event,
        subscribed: asyncio.Event,
    ) -> None:
        while data := await reader.read(CHUNK):
            if answered.is_set():
                answered.clear()
                self.round_trips += 1
            if b"SUBSCRIBE" in data:
                subscribed.set()
            await asyncio.sleep(self.delay)
            if self._is_cut:
                return
            if self.upload_rate:
                async with self._upload:
                    await asyncio.sleep(len(data) / self.upload_rate)
            self.uploaded += len(data)
            writer.write(data)
            await writer.drain()

    async def _down(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answered: asyncio.Event,
        subscribed: asyncio.Event,
    ) -> None:
        while data := await reader.read(CHUNK):
            await asyncio.sleep(self.delay)
            while subscribed.is_set() and self.keeps_subscriptions_waiting:
                await asyncio.sleep(0.01)
            answered.set()
            writer.write(data)
            await writer.drain()
            if self.ends_with_an_answer and not subscribed.is_set():
                self.ends_with_an_answer = False
                self._is_cut = True
                self._cutting = asyncio.create_task(self._cut_softly())

    async def _cut_softly(self) -> None:
        """What has passed already arrives."""
        await asyncio.sleep(0.05)
        await self.cut()
