"""A TCP proxy in front of something: late, deaf, or narrow, as a network can be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
CHUNK = 4096


def to_port(port: int) -> Connect:
    return lambda: asyncio.open_connection("127.0.0.1", port)


def to_socket(path: Path) -> Connect:
    return lambda: asyncio.open_unix_connection(str(path))


class Proxy:
    """Passes bytes on; what it does to them can be changed while it runs."""

    def __init__(self, target: Connect) -> None:
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay = 0.0
        """Seconds that everything takes, in both directions."""
        self.narrow = 0
        """Bytes a second to the client; 0: as fast as they come."""
        self._gates: list[asyncio.Event] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted closes in the next turn of the loop

    def swallow(self) -> None:
        """Open connections carry nothing any more, and neither end gets a reset: the network has forgotten them."""
        for gate in self._gates:
            gate.clear()

    def cut(self) -> None:
        """Open connections end, with what was held back."""
        for task in tuple(self._tasks):
            task.cancel()

    def let_pass(self) -> None:
        """Go on, with what was held back."""
        for gate in self._gates:
            gate.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there, back = await self._target()
        except (OSError, asyncio.CancelledError):
            self._tasks.discard(task)
            writer.transport.abort()
            return
        gate = asyncio.Event()
        gate.set()
        self._gates.append(gate)
        passing = [
            asyncio.create_task(self._pass(reader, back, gate)),
            asyncio.create_task(self._pass(there, writer, gate, narrow=True)),
        ]
        try:
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # asyncio.start_server() reports a cancelled one as an error
        finally:
            # No await before everything is given back: it may be cancelled a second time.
            self._tasks.discard(task)
            for each_way in passing:
                each_way.cancel()
            for each in (writer, back):
                each.transport.abort()
            await asyncio.gather(*passing, return_exceptions=True)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: asyncio.Event,
        *,
        narrow: bool = False,
    ) -> None:
        """Until the end of the one side, which then has to be the other's too."""
        while data := await reader.read(CHUNK):
            await asyncio.sleep(self.delay)
            await gate.wait()
            if narrow and self.narrow:
                await asyncio.sleep(len(data) / self.narrow)
            writer.write(data)
            await writer.drain()
        await gate.wait()
