"""The scenarios. Each is one function, run in the load generator's process against one running system."""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import machine, wires
from bench.clients import Connection, Crowd, crowd
from bench.profiling import profiled
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


QUICK = Sizes(
    burst_connections=20, burst_events=50, paced_connections=20, paced_seconds=1.0,
    threads=10, chat_messages=40, chat_typing=40, chat_seconds=1.0,
    storm_connections=40, storm_at_once=8, idle_connections=40, idle_seconds=1.0, heartbeat_seconds=0.5,
    bridge_events=300, slow_connections=20, slow_seconds=1.0,
    recover_connections=20, recover_messages=5, recover_at_once=10, recover_pause=0.5,
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

    @property
    def complete(self) -> bool:
        return not self.missing and not self.doubled


@dataclass
class Phase:
    """Time and CPU spent in the measured phase."""

    seconds: float = 0.0
    cpu: float = 0.0
    """CPU of all processes of the system."""
    by_process: dict[str, float] = field(default_factory=dict)


@dataclass
class Context:
    """One run: its peer, its sizes and its outcome."""

    scenario: str
    peer: Peer
    port: int
    pids: dict[str, int]
    redis_pid: int
    redis_socket: Path
    sizes: Sizes
    tick: Tick
    profiles: Path | None = None
    """Folder for profiles of the measured phase, if wanted; profiling slows the system down."""
    outcome: Outcome = field(default_factory=Outcome)

    def crowd(self) -> AbstractAsyncContextManager[Crowd]:
        return crowd(self.peer.wire, self.port)

    def users(self, count: int, thread: Callable[[int], str] = lambda _: THREAD) -> list[User]:
        return [self.peer.user(index, thread(index)) for index in range(count)]

    def publisher(self) -> Publisher:
        return Publisher(str(self.redis_socket))

    def packed(self, sequence: int, thread: str = THREAD, sent: int = 0, padding: int = 0) -> bytes:
        """Return the command that publishes one message."""
        data = wires.message(thread, sequence, sent) | ({"padding": "x" * padding} if padding else {})
        return pack(self.peer.command(self.scenario, EVENT, data))

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[Phase]:
        """Measure the body of the `async with`."""
        if self.profiles is not None:
            with profiled(self.pids, self.profiles):
                await asyncio.sleep(1)  # until py-spy has attached
                yield (phase := Phase(seconds=1, cpu=1))
            return
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
        busy_after, elapsed_after = machine.core_times(core)
        self.outcome.load = {
            "seconds": phase.seconds,
            "generator_cpu": (time.process_time() - mine) / phase.seconds,
            "redis_cpu": (machine.cpu_seconds([self.redis_pid]) - redis) / phase.seconds,
            "core_busy": (busy_after - busy) / max(elapsed_after - elapsed, 0.001),
            **{f"{name}_cpu": spent / phase.seconds for name, spent in phase.by_process.items()},
        }

    def check(
        self, connections: Iterable[Connection], expected: Callable[[Connection], Sequence[int]]
    ) -> None:
        """Count missing and duplicate messages, and check that no client was disconnected."""
        for connection in connections:
            got, due = Counter(connection.sequences), Counter(expected(connection))
            self.outcome.expected += due.total()
            self.outcome.missing += (due - got).total()
            self.outcome.doubled += (got - due).total()
            if any(a > b for a, b in zip(connection.sequences, connection.sequences[1:], strict=False)):
                self.outcome.notes.append(f"out of order at {connection.user.id}")
            if connection.closed:
                self.outcome.notes.append(f"connection of {connection.user.id} was lost")
        del self.outcome.notes[5:]

    def enter(self, people: Crowd) -> None:
        """Check that every client has joined before the measurement starts."""
        for reason, count in people.refused.items():
            raise RuntimeError(f"{self.peer.title}: {count} connections refused: {reason}")


# --- a: burst --------------------------------------------------------------------------------------


async def burst(context: Context) -> None:
    """One room with all clients in it, and all events at once."""
    sizes = context.sizes
    async with context.crowd() as people, context.publisher() as publisher:
        await gather(context, people, sizes.burst_connections)
        commands = [context.packed(sequence) for sequence in range(sizes.burst_events)]
        start = time.monotonic_ns()
        async with context.measured() as phase:
            await publisher.send(commands)
            await people.last(sizes.burst_events - 1, quiet=QUIET)
        people.read()
        context.check(people.connections, lambda _: range(sizes.burst_events))
        deliveries = sum(len(connection.sequences) for connection in people.connections)
        # The time of sending is 0, so that a latency is the time of receipt.
        end = max((max(c.latencies) for c in people.connections if c.latencies), default=start)
        context.outcome.metrics = {
            "deliveries_per_cpu_second": deliveries / phase.cpu,
            "cpu_us_per_delivery": phase.cpu / max(deliveries, 1) * 1e6,
            "deliveries_per_second": deliveries / max((end - start) / 1e9, 1e-6),
        }


# --- b: paced --------------------------------------------------------------------------------------


async def paced(context: Context) -> None:
    """One room, events at a steady rate, as in a busy product."""
    sizes = context.sizes
    events = round(sizes.paced_rate * sizes.paced_seconds)
    async with context.crowd() as people, context.publisher() as publisher:
        await gather(context, people, sizes.paced_connections)

        async def publish(sequence: int) -> None:
            await publisher.send([context.packed(sequence, sent=time.monotonic_ns())])
            context.tick(1, events)

        async with context.measured() as phase:
            await at_pace(events, sizes.paced_rate, publish)
            await people.last(events - 1, quiet=QUIET)
        people.read()
        context.check(people.connections, lambda _: range(events))
        latencies = array("q")
        for connection in people.connections:
            latencies.extend(connection.latencies)
        context.outcome.metrics = {
            "cpu_us_per_delivery": phase.cpu / max(len(latencies), 1) * 1e6,
            **percentiles(latencies),
        }


# --- c: chat ---------------------------------------------------------------------------------------


async def chat(context: Context) -> None:
    """Many small rooms: messages from the backbone, typing from the members, mixed at a fixed rate."""
    sizes = context.sizes
    messages = round(sizes.chat_messages * sizes.chat_seconds)
    typings = round(sizes.chat_typing * sizes.chat_seconds)
    async with context.crowd() as people, context.publisher() as publisher:
        users = context.users(sizes.threads * sizes.members, lambda index: f"t{index % sizes.threads}")
        await gather(context, people, 0, users)
        typed: dict[tuple[str, bool], int] = {}

        async def publish(sequence: int) -> None:
            thread = f"t{sequence * 7 % sizes.threads}"
            await publisher.send([context.packed(sequence, thread, time.monotonic_ns())])
            context.tick(1, messages + typings)

        async def type_or_stop(turn: int) -> None:
            # One client starts, and the one that started `lag` starts ago stops, before the server forgets it.
            lag = max(1, round(sizes.chat_typing / 4))
            starting = turn % 2 == 0
            index = turn // 2 - (0 if starting else lag)
            if index < 0:
                return
            connection = people.connections[index]
            typed[connection.user.id, starting] = time.monotonic_ns()
            connection.send(context.peer.wire.typing(connection.user, starting))
            context.tick(1, messages + typings)

        async with context.measured() as phase:
            async with asyncio.TaskGroup() as both:
                both.create_task(at_pace(messages, sizes.chat_messages, publish))
                both.create_task(at_pace(typings, sizes.chat_typing, type_or_stop))
            await people.silence(0.5)
        people.read()

        by_thread: dict[str, list[int]] = defaultdict(list)
        for sequence in range(messages):
            by_thread[f"t{sequence * 7 % sizes.threads}"].append(sequence)
        context.check(people.connections, lambda connection: by_thread[connection.user.thread])
        latencies = array("q")
        for connection in people.connections:
            latencies.extend(connection.latencies)
        latencies.extend(_check_typing(context, people, typed))
        context.outcome.metrics = {
            "cpu_us_per_event": phase.cpu / (messages + len(typed)) * 1e6,
            **percentiles(latencies),
        }


def _check_typing(context: Context, people: Crowd, typed: dict[tuple[str, bool], int]) -> array[int]:
    """The other clients in the thread saw each start and each stop once."""
    members: dict[str, list[str]] = defaultdict(list)
    for connection in people.connections:
        members[connection.user.thread].append(connection.user.id)
    latencies = array("q")
    for connection in people.connections:
        others = [user for user in members[connection.user.thread] if user != connection.user.id]
        due = Counter((user, state) for user in others for state in (True, False) if (user, state) in typed)
        got: Counter[tuple[str, bool]] = Counter()
        for user_id, state, at in connection.typing:
            key = (user_id.decode(), state)
            got[key] += 1
            if key in typed:
                latencies.append(at - typed[key])
        context.outcome.expected += due.total()
        context.outcome.missing += (due - got).total()
        context.outcome.doubled += (got - due).total()
    return latencies


# --- d: connect storm --------------------------------------------------------------------------------


async def connect_storm(context: Context) -> None:
    """All clients connect, 64 at a time; a connection counts once it is authenticated and ready."""
    sizes = context.sizes
    async with context.crowd() as people:
        users = context.users(sizes.storm_connections)
        async with context.measured() as phase:
            times = await people.open(
                users, at_once=sizes.storm_at_once, tick=lambda n: context.tick(n, sizes.storm_connections)
            )
        context.outcome.expected = len(users)
        context.outcome.missing = people.refused.total()
        context.outcome.notes = list(people.refused)[:3]
        context.outcome.metrics = {
            "connects_per_second": len(users) / phase.seconds,
            "cpu_us_per_connect": phase.cpu / len(users) * 1e6,
            "p99_ms": quantile(sorted(times), 0.99) * 1e3,
        }


# --- e: idle ---------------------------------------------------------------------------------------


async def idle(context: Context) -> None:
    """Many connections that only stay alive."""
    sizes = context.sizes
    pid = next(iter(context.pids.values()))
    empty = machine.resident_bytes(pid)
    async with context.crowd() as people, context.publisher() as publisher:
        await gather(context, people, sizes.idle_connections)
        heartbeat = context.peer.wire.heartbeat()
        async with context.measured() as phase:
            deadline = time.monotonic() + sizes.idle_seconds
            step = 0.1
            batch = math.ceil(len(people.connections) * step / sizes.heartbeat_seconds)
            turn = 0
            while time.monotonic() < deadline:
                if heartbeat is not None:
                    for _ in range(batch):
                        people.connections[turn % len(people.connections)].send(heartbeat)
                        turn += 1
                await asyncio.sleep(step)
                context.tick(1, round(sizes.idle_seconds / step))
        full = machine.resident_bytes(pid)
        # Every connection must still be alive.
        await publisher.send([context.packed(0)])
        await people.last(0, quiet=QUIET)
        people.read()
        context.check(people.connections, lambda _: [0])
        context.outcome.metrics = {
            "kib_per_connection": (full - empty) / len(people.connections) / 1024,
            "rss_mib": full / 2**20,
            "empty_mib": empty / 2**20,
            "others_mib": sum(
                machine.resident_bytes(other) for other in context.pids.values() if other != pid
            )
            / 2**20,
            "cpu_percent": phase.cpu / phase.seconds * 100,
        }


# --- f: bridge -------------------------------------------------------------------------------------


async def bridge(context: Context) -> None:
    """One subscriber, to measure the rate of events from the bus into a room."""
    sizes = context.sizes
    slices = 200
    async with context.crowd() as people, context.publisher() as publisher:
        await gather(context, people, 1)
        commands = [context.packed(sequence) for sequence in range(sizes.bridge_events)]
        started = time.monotonic_ns()
        async with context.measured() as phase:
            for first in range(0, len(commands), slices):
                await publisher.send(commands[first : first + slices])
                context.tick(slices, len(commands))
            await people.last(sizes.bridge_events - 1, quiet=QUIET)
        people.read()
        context.check(people.connections, lambda _: range(sizes.bridge_events))
        latencies = people.connections[0].latencies
        end = max(latencies) if latencies else started
        context.outcome.metrics = {
            "events_per_second": len(latencies) / max((end - started) / 1e9, 1e-6),
            "cpu_us_per_event": phase.cpu / max(len(latencies), 1) * 1e6,
        }


# --- g: reconnect storm ------------------------------------------------------------------------------


async def reconnect_storm(context: Context) -> None:
    """All clients are cut off, miss some messages, reconnect and receive them."""
    sizes = context.sizes
    missed = range(1, 1 + sizes.recover_messages)
    async with context.crowd() as people, context.crowd() as back, context.publisher() as publisher:
        await gather(context, people, sizes.recover_connections)
        await publisher.send([context.packed(0)])
        await people.last(0, quiet=QUIET)
        people.read()
        context.check(people.connections, lambda _: [0])
        users = [connection.user for connection in people.connections]
        wire = context.peer.wire
        positions = [wire.position(c.hello, c.last_event) for c in people.connections]
        for connection in people.connections:
            connection.drop()
        await asyncio.sleep(sizes.recover_pause)
        await publisher.send([context.packed(sequence) for sequence in missed])
        await asyncio.sleep(0.5)

        whole = asyncio.Event()
        caught_up: list[float] = []

        def watch(connection: Connection) -> None:
            def on_event() -> None:
                if len(connection.sequences) == len(missed):
                    caught_up.append(time.perf_counter())
                    context.tick(1, len(users))
                    if len(caught_up) == len(users):
                        whole.set()

            connection.on_event = on_event

        started = time.perf_counter()
        async with context.measured() as phase:
            await back.open(users, at_once=sizes.recover_at_once, positions=positions, created=watch)
            if back.connections:
                try:
                    async with asyncio.timeout(QUIET):
                        await whole.wait()
                except TimeoutError:
                    context.outcome.notes.append(f"{len(users) - len(caught_up)} never caught up")
        # The connections must receive new messages, and none twice.
        final = 1 + sizes.recover_messages
        await publisher.send([context.packed(final)])
        await back.last(final, quiet=QUIET / 4)
        back.read()
        context.check(back.connections, lambda _: [*missed, final])
        context.outcome.missing += back.refused.total() * (len(missed) + 1)
        context.outcome.notes += list(back.refused)[:3]
        context.outcome.metrics = {
            "seconds_to_last": (max(caught_up) - started) if caught_up else math.inf,
            "recovered_percent": 100 * len(caught_up) / len(users),
            "cpu_us_per_client": phase.cpu / len(users) * 1e6,
        }


# --- h: a slow reader --------------------------------------------------------------------------------


async def slow_reader(context: Context) -> None:
    """The same rate twice, the second time with one more client in the room, which does not read."""
    sizes = context.sizes
    events = round(sizes.slow_rate * sizes.slow_seconds)
    pid = next(iter(context.pids.values()))
    async with context.crowd() as people, context.crowd() as others, context.publisher() as publisher:
        await gather(context, people, sizes.slow_connections)
        found: list[dict[str, float]] = []
        for first in (0, events):

            async def publish(turn: int, first: int = first) -> None:
                now = time.monotonic_ns()
                await publisher.send([context.packed(first + turn, sent=now, padding=sizes.slow_bytes)])
                context.tick(1, 2 * events)

            async with context.measured():
                await at_pace(events, sizes.slow_rate, publish)
                await people.last(first + events - 1, quiet=QUIET)
            people.read()
            latencies = array("q")
            for connection in people.connections:
                latencies.extend(connection.latencies[first:])
            found.append(percentiles(latencies))
            if not first:
                await gather(context, others, 1, context.users(sizes.slow_connections + 1)[-1:])
                others.connections[0].stop_reading()
        context.check(people.connections, lambda _: range(2 * events))
        context.outcome.metrics = {
            "p99_ms": found[1]["p99_ms"],
            "p99_without_ms": found[0]["p99_ms"],
            "rss_mib": machine.resident_bytes(pid) / 2**20,
        }


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


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values; NaN if there are none."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else math.nan


def percentiles(nanoseconds: Iterable[int]) -> dict[str, float]:
    ordered = sorted(nanoseconds)
    return {"p50_ms": quantile(ordered, 0.5) / 1e6, "p99_ms": quantile(ordered, 0.99) / 1e6}


# --- How results are presented ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Metric:
    """A line of the table."""

    key: str
    title: str
    unit: str
    higher_is_better: bool = False
    must: float | None = None
    """Target as a ratio to Socket.IO."""
    stretch: float | None = None
    must_be: float | None = None
    """Target in the metric's own unit."""
    times_channels: float | None = None
    """The target: how many times better than plain Channels."""


@dataclass(frozen=True, slots=True)
class Scenario:
    key: str
    title: str
    run: Callable[[Context], Awaitable[None]]
    metrics: tuple[Metric, ...]
    heavy: bool = False
    """Takes minutes with a slow peer, and the ratio is clear, so a slow peer is measured once."""


SCENARIOS = {
    scenario.key: scenario
    for scenario in (
        Scenario(
            "a", "burst: 1 room × {burst_connections:,} connections × {burst_events:,} events", burst,
            (
                Metric(
                    "deliveries_per_cpu_second", "deliveries per CPU-second", "/s", True, 20, 40,
                    times_channels=200,
                ),
                Metric("deliveries_per_second", "deliveries per second", "/s", True),
            ),
            heavy=True,
        ),
        Scenario(
            "b", "paced: 1 room × {paced_connections:,} connections, {paced_rate:g} events/s", paced,
            (
                Metric("cpu_us_per_delivery", "CPU per delivery", "µs", False, 0.75, 0.6, times_channels=10),
                Metric("p50_ms", "latency p50", "ms"),
                Metric("p99_ms", "latency p99", "ms", False, 1.0),
            ),
            heavy=True,
        ),
        Scenario(
            "c",
            "chat: {threads:,} threads × {members}, {chat_messages:g} messages/s + {chat_typing:g} typing/s",
            chat,
            (
                Metric("cpu_us_per_event", "CPU per event", "µs", False, 1.2, 0.8),
                Metric("p50_ms", "latency p50", "ms"),
                Metric("p99_ms", "latency p99", "ms", False, 1.0),
            ),
        ),
        Scenario(
            "d", "connect storm: {storm_connections:,} JWT handshakes, {storm_at_once} at a time", connect_storm,
            (
                Metric("connects_per_second", "connects per second", "/s", True, 0.8, 1.2),
                Metric("cpu_us_per_connect", "CPU per connect", "µs"),
                Metric("p99_ms", "until ready, p99", "ms"),
            ),
        ),
        Scenario(
            "e", "idle: {idle_connections:,} connections with heartbeats", idle,
            (
                Metric("kib_per_connection", "memory per connection", "KiB", must_be=18),
                Metric("rss_mib", "memory of the server process", "MiB", False, 1.3, 1.0),
                Metric("cpu_percent", "CPU", "%", False, 1.0),
            ),
        ),
        Scenario(
            "f", "bridge: {bridge_events:,} events, 1 subscriber", bridge,
            (
                Metric("events_per_second", "events per second", "/s", True, 0.5, 1.0),
                Metric("cpu_us_per_event", "CPU per event", "µs"),
            ),
        ),
        Scenario(
            "g",
            "reconnect storm: {recover_connections:,} clients, {recover_messages} messages missed",
            reconnect_storm,
            (
                Metric("seconds_to_last", "time to the last", "s", False, 1.0, 0.5),
                Metric("recovered_percent", "recovered", "%", True, 1.0),
                Metric("cpu_us_per_client", "CPU per client", "µs"),
            ),
        ),
        Scenario(
            "h",
            "slow reader: {slow_connections:,} at {slow_rate:g} events/s of {slow_bytes:,} bytes, one does not read",
            slow_reader,
            (
                Metric("p99_ms", "latency p99 of all other clients", "ms"),
                Metric("p99_without_ms", "the same without the slow reader", "ms"),
                Metric("rss_mib", "memory of the server process", "MiB"),
            ),
        ),
    )
}  # fmt: skip
