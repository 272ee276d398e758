"""The scenarios a to h, and j. Each is one function, run in the load generator's process against one running system."""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections import Counter, defaultdict

from bench import machine
from bench.clients import Connection, Crowd
from bench.context import QUIET, Context, at_pace, gather, percentiles, quantile, stamped

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
        commands = [context.packed(sequence) for sequence in range(events)]

        async def publish(sequence: int) -> None:
            await publisher.send([stamped(commands[sequence])])
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
        commands = [context.packed(n, f"t{n * 7 % sizes.threads}") for n in range(messages)]

        async def publish(sequence: int) -> None:
            await publisher.send([stamped(commands[sequence])])
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
        of_messages = array("q")
        for connection in people.connections:
            of_messages.extend(connection.latencies)
        of_typing = _check_typing(context, people, typed)
        context.outcome.metrics = {
            "cpu_us_per_event": phase.cpu / (messages + len(typed)) * 1e6,
            **percentiles(of_messages + of_typing),
            "messages_p50_ms": percentiles(of_messages)["p50_ms"],
            "typing_p50_ms": percentiles(of_typing)["p50_ms"],
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
        for user_id, state, at in connection.signals:
            key = (user_id, state == "true")
            got[key] += 1
            if key in typed:
                latencies.append(at - typed[key])
        context.count(due, got)
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
            "redis_us_per_event": phase.redis / max(len(latencies), 1) * 1e6,
        }
        if (spent := phase.by_process.get("bridge")) is not None:
            context.outcome.metrics["bridge_us_per_event"] = spent / max(len(latencies), 1) * 1e6


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
        positions = [wire.position(c.user, c.seen) for c in people.connections]
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
        commands = [context.packed(sequence, padding=sizes.slow_bytes) for sequence in range(2 * events)]
        found: list[dict[str, float]] = []
        for first in (0, events):

            async def publish(turn: int, first: int = first) -> None:
                await publisher.send([stamped(commands[first + turn])])
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
