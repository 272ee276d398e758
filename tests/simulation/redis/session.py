"""A connection to the server: its commands run one after the other."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from tests.simulation.network import Link
from tests.simulation.redis.resp import Parser, Refused, encode

if TYPE_CHECKING:
    from tests.simulation.redis.blocking import Blocked
    from tests.simulation.redis.server import RedisServer

NOTHING = object()
"""No reply, or not yet."""


class Session:
    """A connection, as the server has it."""

    def __init__(self, server: RedisServer, link: Link) -> None:
        self.server = server
        self.link = link
        self.protocol = 2
        self.channels: dict[bytes, None] = {}
        self.blocked: Blocked | None = None
        self.silent = 0
        """The next so many replies are not sent."""
        self._parser = Parser()
        self._commands: deque[list[bytes]] = deque()

    def receive(self, data: bytes) -> None:
        self._commands.extend(self._parser.feed(data))
        self.go_on()

    def go_on(self) -> None:
        while self._commands and self.blocked is None and not self.server.is_hanging:
            self._run(self._commands.popleft())

    def _run(self, command: list[bytes]) -> None:
        silent, self.silent = self.silent > 0, max(self.silent - 1, 0)
        try:
            reply = self.server.run(self, command)
        except Refused as error:
            reply = error
        if reply is not NOTHING and not silent:
            self.send(reply)

    def send(self, reply: Any) -> None:
        self.link.down.send(encode(reply, self.protocol))

    def lost(self) -> None:
        self.server.forget(self)
