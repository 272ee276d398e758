"""What a simulation consists of: time, chance, a network, Redis, and all that take part."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.simulation.checker.checker import Checker, Violation
from tests.simulation.clients import Client
from tests.simulation.clock import Clock
from tests.simulation.host import Host, Numbered
from tests.simulation.network import Network
from tests.simulation.redis.server import RedisServer
from tests.simulation.sockets import Socket

PREFIX = "sim"
REDIS = ("redis", 6379)
HISTORY_SIZE = 60
THREADS = ("1", "2", "3")
DAMAGED = "thread:13"


@dataclass
class Part:
    """A process of the system, and how to start another one like it."""

    kind: str
    name: str
    host: Host
    main: Callable[[], Coroutine[Any, Any, None]]


class Stage:
    """One simulation, before anything happens in it."""

    def __init__(self, seed: int, *, calm: bool = False, say: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.is_direct = seed % 4 == 0
        self.has_bridges = seed % 3 != 0
        """Else every instance has one inside."""
        self.has_refusals = seed % 5 == 0
        """Some messages are for a room, too, whose key another program has overwritten."""
        self.has_clock_jumps = seed % 7 == 6
        """Redis' clock is set forward now and then."""
        self.calm = calm
        """Nothing breaks."""
        self._say = say
        Socket.numbers = Numbered.numbers = 0
        self.clock = Clock()
        self.network = Network(self.clock, self.random)
        self.redis = RedisServer(self.clock)
        self.network.servers[REDIS] = self.redis
        self.checker = Checker(PREFIX, HISTORY_SIZE, lambda: self.clock.now, self.fail)
        self.parts: list[Part] = []
        self.clients: list[Client] = []
        self.sockets: dict[Socket, None] = {}
        self.happened: Counter[str] = Counter()
        self.buried: list[Any] = []
        """Hosts that were killed, and what was theirs."""
        self.messages = 0
        self.replica: tuple[Any, Any, float] | None = None
        self.is_over = False
        self.has_broken = False
        """A connection, or Redis, has."""
        self._trace = hashlib.sha256()

    @property
    def trace(self) -> str:
        """The same for the same seed, always."""
        return self._trace.hexdigest()[:16]

    def fail(self, why: str) -> None:
        if self.clock.failure is None:
            self.note("VIOLATION", why)
            self.clock.failure = Violation(
                f"seed {self.seed}, {self.clock.now:.6f} s, step {self.clock.steps}: {why}"
            )

    def note(self, what: str, *about: Any) -> None:
        self._trace.update(f"{self.clock.now:.9f} {self.clock.steps} {what} {about}".encode())
        if self._say is not None:
            self._say(" ".join([f"{self.clock.now:10.6f} {self.clock.steps:7} {what}", *map(str, about)]))
