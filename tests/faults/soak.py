"""`make soak MINUTES=30`: two thousand people come, go, type and drop, while something breaks every few seconds.

Nothing may be lost or doubled, and afterwards everything is as it was before: memory, files, tasks, keys in Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import django
import msgspec
from redis.exceptions import RedisError
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bench import machine
from bench.chart import lines
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import Process
from tests.faults import test_delivery as faults
from tests.faults.world import GRACE, World

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"
SAMPLE_SECONDS = 5.0
CALM_SECONDS = 10.0
"""Between the end of one fault and the next."""

CALM_DOWN_SECONDS = 60
"""After the last one has left: grace, leases of killed processes, keys that go by themselves."""

PASSING = re.compile(r":id:|\}:(room|log)$|:seats:")
"""Keys that go by themselves: ids that were delivered (10 minutes), what a room remembers (10 minutes, 7 days), seats
that a killed process could not give up (7 days)."""

Fault = Callable[[World], Awaitable[None]]
FAULTS: list[Fault] = [
    faults.socket_server_is_killed,
    faults.bridges_are_killed_in_turn,
    faults.subscriptions_are_cut,
    faults.every_redis_connection_is_cut,
    faults.redis_restarts_with_everything,
    faults.clients_drop_again_and_again,
    faults.event_loop_stalls,
]


@dataclass
class Sample:
    """How much of everything there is at one moment."""

    seconds: float
    sockets_mib: float
    bridges_mib: float
    files: int
    tasks: int
    keys: int


@dataclass
class Soak:
    """What happened."""

    minutes: float
    people: int
    faults: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    before: Sample | None = None
    after: Sample | None = None
    account: dict[str, object] = field(default_factory=dict)
    traces: int = 0
    """Stack traces in the logs of all processes."""


def running(processes: list[Process]) -> list[int]:
    return [process.pid for process in processes if process.is_running]


async def sample(world: World, started: float) -> Sample:
    pids = running(world.sockets)
    tasks = 0
    for port in world.ports:
        try:
            body = (await world.stack.http("GET", "/metrics", port=port)).body.decode()
        except OSError:
            continue
        tasks += sum(
            int(float(line.split()[1])) for line in body.splitlines() if line.startswith("realtime_tasks ")
        )
    return Sample(
        round(time.monotonic() - started, 1),
        sum(map(machine.resident_bytes, pids)) / 2**20,
        sum(map(machine.resident_bytes, running(world.bridges))) / 2**20,
        sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
        tasks,
        sum(not PASSING.search(key) for key in world.stack.redis.scan_iter(count=5000)),
    )


async def soak(minutes: float, people: int, directory: Path) -> Soak:
    """Run it."""
    result = Soak(minutes, people)
    redis = directory / "redis"
    redis.mkdir()
    with EmbeddedRedis(redis) as server:
        world = World(directory, server, threads=people // 4, REALTIME_DRAIN_SECONDS="3")
        world.patience = 120.0
        try:
            await asyncio.to_thread(world.start)
            started = time.monotonic()
            await warm_up(world)
            result.before = await sample(world, started)
            await world.gather(count=people, each=3)
            await live(world, result, started)
            account = await world.settle()
            result.account = vars(account)
            await world.part()
            result.after = await calm_down(world, result.before, started)
        finally:
            await world.stop()
        result.traces = world.stack.logs.count("Traceback (most recent call last)")
    return result


async def warm_up(world: World) -> None:
    """What a server starts with its first connection is there."""
    for port in world.ports:
        async with world.stack.client("hub", groups=[world.group], port=port) as client:
            await client.call("heartbeat")
    await asyncio.sleep(GRACE + 2)


async def calm_down(world: World, before: Sample, started: float) -> Sample:
    """The first moment at which everything but memory is as it was, or the last moment of the wait."""
    deadline = time.monotonic() + CALM_DOWN_SECONDS
    while True:
        after = await sample(world, started)
        if after.files <= before.files and after.tasks <= before.tasks and after.keys <= before.keys:
            return after
        if time.monotonic() > deadline:
            left = Counter(re.sub(r"[0-9a-f]{6,}", "…", str(key)) for key in world.stack.redis.scan_iter())
            logger.warning("still there: %s", left.most_common(12))
            return after
        await asyncio.sleep(1)


async def live(world: World, result: Soak, started: float) -> None:
    """Traffic, typing, dropping and faults, for as long as it was asked for."""
    deadline = time.monotonic() + result.minutes * 60
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), transient=True
    ) as progress:
        bar = progress.add_task("soak", total=result.minutes * 60)

        async def watch() -> None:
            while True:
                with contextlib.suppress(RedisError):  # it is what is broken just now
                    result.samples.append(await sample(world, started))
                progress.update(bar, completed=result.minutes * 60 - (deadline - time.monotonic()))
                await asyncio.sleep(SAMPLE_SECONDS)

        async def type_and_drop() -> None:
            while True:
                for person in random.sample(world.people, 20):
                    await person.type()
                random.choice(world.people).drop()
                await asyncio.sleep(0.2)

        busy = [asyncio.create_task(watch()), asyncio.create_task(type_and_drop())]
        async with world.traffic():
            while time.monotonic() < deadline:
                await asyncio.sleep(CALM_SECONDS)
                fault = random.choice(FAULTS)
                progress.update(bar, description=fault.__name__)
                await fault(world)
                result.faults[fault.__name__] += 1
                progress.update(bar, description="soak")
        for task in busy:
            task.cancel()
        for outcome in await asyncio.gather(*busy, return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.error("the soak's own watcher failed", exc_info=outcome)


def report(result: Soak) -> str:
    """In words, for docs/reliability.md."""
    before, after, account = result.before, result.after, result.account
    assert before is not None
    assert after is not None
    rows = [
        ("socket servers, MiB", f"{before.sockets_mib:.0f}", f"{after.sockets_mib:.0f}"),
        ("bridges, MiB", f"{before.bridges_mib:.0f}", f"{after.bridges_mib:.0f}"),
        ("open files of the socket servers", str(before.files), str(after.files)),
        ("tasks in the socket servers", str(before.tasks), str(after.tasks)),
        ("keys in Redis that do not expire by themselves", str(before.keys), str(after.keys)),
    ]
    return "\n".join(
        (
            f"{result.people:,} people, {result.minutes:g} minutes, {result.faults.total()} faults "
            f"({', '.join(f'{count} × {name}' for name, count in sorted(result.faults.items()))}): "
            f"{account['expected']:,} deliveries expected, {account['lost']} lost, {account['doubled']} doubled, "
            f"{account['misordered']} out of order, {account['gaps']} gaps said, {result.traces} stack traces logged.",
            "",
            "| | before | after |",
            "|---|--:|--:|",
            *(f"| {name} | {first} | {last} |" for name, first, last in rows),
            "",
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--people", type=int, default=2000)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    machine.raise_file_limit(options.people * 2 + 500)
    with tempfile.TemporaryDirectory() as directory:
        result = asyncio.run(soak(options.minutes, options.people, Path(directory)))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    series = {
        "socket servers, MiB": [(each.seconds / 60, each.sockets_mib) for each in result.samples],
        "bridges, MiB": [(each.seconds / 60, each.bridges_mib) for each in result.samples],
    }
    (RESULTS / "soak.svg").write_text(lines("Memory during the soak", "minutes", series))
    sys.stdout.write(report(result))
    return 1 if result.account["lost"] or result.account["doubled"] or result.traces else 0


if __name__ == "__main__":
    raise SystemExit(main())
