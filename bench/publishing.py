"""The backbone: writes events into Redis as fast as Redis accepts them, or at a fixed rate."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

import hiredis

Command = tuple[str | bytes, ...]


class Publisher:
    """A connection to Redis that sends commands in pipelines. Context manager.

    `script` is the Lua script that they run, if any: Redis has to know it.
    """

    def __init__(self, path: str, script: bytes = b"") -> None:
        self._path = path
        self._script = script
        self._replies = hiredis.Reader()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_unix_connection(self._path)
        if self._script:
            await self.send([pack(("SCRIPT", "LOAD", self._script))])
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._writer.close()

    async def send(self, commands: Sequence[bytes]) -> None:
        """Send packed commands at once, and wait until Redis has accepted all of them."""
        self._writer.write(b"".join(commands))
        for _ in commands:
            while (reply := self._replies.gets()) is False:
                self._replies.feed(await self._reader.read(1 << 16))
            if isinstance(reply, Exception):
                raise reply


def pack(command: Command) -> bytes:
    """Return a command in the wire format of Redis."""
    packed: bytes = hiredis.pack_command(command)
    return packed
