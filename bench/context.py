"""One run of one scenario: its sizes, its outcome, and what all scenarios do."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import counters, machine, wires
from bench.clients import Connection, Crowd, crowd
from bench.profiling import Profiles, profiled
from bench.publishing import Publisher, pack
from bench.systems.base import Peer
from bench.wires import User

EVENT = "thread:message"
THREAD = "bench"
QUIET = 20.0
"""Seconds without a message after which no more are expected."""
BUSY = 0.9
"""Share of its core above which the load generator may slow a server down."""
Tick = Callable[[int, int], None]
"""Reports progress: steps done since the last call, and steps in all."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the scenarios."""

    burst_connections: int = 1000
    burst_events: int = 1000
    paced_connections: int = 1000
    paced_rate: float = 40.0
    paced_seconds: float = 10.0
    threads: int = 2000
    members: int = 3
    chat_messages: float = 500.0
    """Messages a second over the bus."""
    chat_typing: float = 500.0
    """Typing events a second from clients: half of them start, half stop."""
    chat_seconds: float = 10.0
    storm_connections: int = 4000
    storm_at_once: int = 64
    idle_connections: int = 10_000
    idle_seconds: float = 60.0
    heartbeat_seconds: float = 30.0
    bridge_events: int = 20_000
    recover_connections: int = 2000
    recover_messages: int = 20
    recover_at_once: int = 500
    slow_connections: int = 1000
    slow_rate: float = 20.0
    slow_bytes: int = 4000
    """Size of each event's body."""
    slow_seconds: float = 10.0
    recover_pause: float = 3.0
    """Seconds between the cut and the reconnect, in which a server notices the cut."""
    mixed_threads: int = 1500
    """Threads of two to four, in the order 2, 3, 3, 4, 4, 4: 20 clients for six threads."""
    mixed_messages: float = 200.0
    """Messages a second over the bus."""
    mixed_typing: float = 100.0
    """Typing events a second from clients: half of them start, half stop."""
    mixed_changes: float = 20.0
    """Changes of presence a second: half of them to away, half back online."""
    mixed_drops: float = 50.0
    """Clients a second that lose their connection, and come back after `mixed_pause` seconds."""
    mixed_pause: float = 1.0
    mixed_seconds: float = 60.0


QUICK = Sizes(
    burst_connections=20, burst_events=50, paced_connections=20, paced_seconds=1.0,
    threads=10, chat_messages=40, chat_typing=40, chat_seconds=1.0,
    storm_connections=40, storm_at_once=8, idle_connections=40, idle_seconds=1.0, heartbeat_seconds=0.5,
    bridge_events=300, slow_connections=20, slow_seconds=1.0,
    recover_connections=20, recover_messages=5, recover_at_once=10, recover_pause=0.5,
    mixed_threads=12, mixed_messages=40, mixed_typing=40, mixed_changes=10, mixed_drops=5, mixed_seconds=2.0,
)  # fmt: skip


@dataclass
class Outcome:
    """The result of one run of one scenario."""

    metrics: dict[str, float] = field(default_factory=dict)
    expected: int = 0
    missing: int = 0
    doubled: int = 0
    notes: list[str] = field(default_factory=list)
    load: dict[str, float] = field(default_factory=dict)
    """CPU shares of the load generator, of Redis and of their core during the measurement."""
    cost: dict[str, float] = field(default_factory=dict)
    """What all measured phases together cost the system: CPU seconds, and instructions where they can be counted."""

    @property
    def complete(self) -> bool:
        return not self.missing and not self.doubled


@dataclass
class Phase:
    """Time and CPU spent in the measured phase."""

    seconds: float = 0.0
    cpu: float = 0.0
    """CPU of all processes of the system."""
    redis: float = 0.0
    """CPU of Redis."""
    by_process: dict[str, float] = field(default_factory=dict)


@dataclass
class Context:
    """One run: its peer, its sizes and its outcome."""

    scenario: str
    peer: Peer
    ports: tuple[int, ...]
    pids: dict[str, int]
    redis_pid: int
    redis_socket: Path
    sizes: Sizes
    tick: Tick
    profiles: Profiles | None = None
    """Profiles of the measured phase, if wanted; profiling slows the system down."""
    outcome: Outcome = field(default_factory=Outcome)

    def crowd(self) -> AbstractAsyncContextManager[Crowd]:
        return crowd(self.peer.wire, self.ports)

    def users(self, count: int, thread: Callable[[int], str] = lambda _: THREAD) -> list[User]:
        return [self.peer.user(index, thread(index)) for index in range(count)]

    def publisher(self) -> Publisher:
        return Publisher(str(self.redis_socket), self.peer.script())

    def packed(self, sequence: int, thread: str = THREAD, *, padding: int = 0) -> bytes:
        """Return the command that publishes one message, without its time.

        A scenario prepares its commands before it measures: the work of making one would slow down Redis, with which
        the load generator shares a core, and for some systems more than for others.
        """
        # The padding comes first: the end of a frame tells which message it is.
        data = ({"padding": "x" * padding} if padding else {}) | wires.message(thread, sequence)
        return pack(self.peer.command(self.scenario, EVENT, data))

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[Phase]:
        """Measure the body of the `async with`."""
        if self.profiles is not None:
            with profiled(self.pids, self.profiles):
                await asyncio.sleep(1)  # until py-spy has attached
                yield (phase := Phase(seconds=1, cpu=1))
            return
        with ExitStack() as counting:
            instructions = None
            if counters.available():
                instructions = counting.enter_context(counters.Counter(self.pids.values()))
            async with self._timed() as phase:
                yield phase
            if instructions is not None:
                self._spent("instructions", instructions.read())
        self._spent("cpu_seconds", phase.cpu)

    def _spent(self, unit: str, amount: float) -> None:
        self.outcome.cost[unit] = self.outcome.cost.get(unit, 0) + amount

    @asynccontextmanager
    async def _timed(self) -> AsyncIterator[Phase]:
        core = machine.cores()[1]
        phase = Phase()
        before = {name: machine.cpu_seconds([pid]) for name, pid in self.pids.items()}
        redis, mine = machine.cpu_seconds([self.redis_pid]), time.process_time()
        busy, elapsed = machine.core_times(core)
        started = time.perf_counter()
        yield phase
        phase.seconds = time.perf_counter() - started
        phase.by_process = {
            name: machine.cpu_seconds([pid]) - before[name] for name, pid in self.pids.items()
        }
        phase.cpu = sum(phase.by_process.values())
        phase.redis = machine.cpu_seconds([self.redis_pid]) - redis
        busy_after, elapsed_after = machine.core_times(core)
        self.outcome.load = {
            "seconds": phase.seconds,
            "generator_cpu": (time.process_time() - mine) / phase.seconds,
            "redis_cpu": phase.redis / phase.seconds,
            "core_busy": (busy_after - busy) / max(elapsed_after - elapsed, 0.001),
            **{f"{name}_cpu": spent / phase.seconds for name, spent in phase.by_process.items()},
        }

    def count(self, due: Counter[Any], got: Counter[Any], optional: Counter[Any] | None = None) -> None:
        """Count what is missing of what was due, and what came too often. What is optional may be missing."""
        self.outcome.expected += due.total()
        self.outcome.missing += (due - got).total()
        self.outcome.doubled += (got - due - (optional or Counter())).total()

    def check(
        self, connections: Iterable[Connection], expected: Callable[[Connection], Sequence[int]]
    ) -> None:
        """Count missing and duplicate messages, and check that no client was disconnected."""
        for connection in connections:
            self.count(Counter(expected(connection)), Counter(connection.sequences))
            if any(a > b for a, b in zip(connection.sequences, connection.sequences[1:], strict=False)):
                self.outcome.notes.append(f"out of order at {connection.user.id}")
            if connection.closed:
                self.outcome.notes.append(f"connection of {connection.user.id} was lost")
        del self.outcome.notes[5:]

    def enter(self, people: Crowd) -> None:
        """Check that every client has joined before the measurement starts."""
        for reason, count in people.refused.items():
            raise RuntimeError(f"{self.peer.title}: {count} connections refused: {reason}")


# --- Common ----------------------------------------------------------------------------------------


async def gather(context: Context, people: Crowd, count: int, users: Sequence[User] | None = None) -> None:
    """All clients connect, join, and stay silent."""
    users = users or context.users(count)
    await people.open(users)
    context.enter(people)
    await people.join()
    people.listen()
    await asyncio.sleep(0.5)


async def at_pace(count: int, rate: float, work: Callable[[int], Awaitable[None]]) -> None:
    """Call `work` at a fixed rate, which holds even if some calls take longer."""
    started = time.monotonic()
    for turn in range(count):
        if (early := started + turn / rate - time.monotonic()) > 0:
            await asyncio.sleep(early)
        await work(turn)


def stamped(command: bytes) -> bytes:
    """Put the time into a command that is sent now."""
    return command.replace(wires.UNSTAMPED, wires.stamp(time.monotonic_ns()))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values; NaN if there are none."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else math.nan


def percentiles(nanoseconds: Iterable[int]) -> dict[str, float]:
    ordered = sorted(nanoseconds)
    return {
        "p50_ms": quantile(ordered, 0.5) / 1e6,
        "p99_ms": quantile(ordered, 0.99) / 1e6,
        "p999_ms": quantile(ordered, 0.999) / 1e6,
    }
