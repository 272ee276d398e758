"""`make attack MINUTES=3`: two hundred ordinary clients, and one flood after the other from attackers.

It prints what the ordinary clients noticed and what it cost, and fails when a message was lost or doubled, a client
was seen to leave, a stack trace was logged, or memory grew by more than the bound. Latency is printed, not judged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NoReturn

import django
import msgspec

from bench import machine
from realtime.client import CallFailed
from realtime.testing.embedded_redis import EmbeddedRedis, NoServer
from tests.e2e.harness import ROOT, unique
from tests.faults.attack_report import CALM, MIB, Noticed, Report
from tests.faults.floods import FLOODS, HALF, Job
from tests.faults.pressing import Spent
from tests.faults.world import Account, World

OVERHEAD_SECONDS = 2.5
"""What each flood takes in addition: traffic before and after it, and counting."""
SHORTEST_SECONDS = 1.0
PROBE_SECONDS = 0.2
SENT_PATIENCE = 60.0


def say(line: str) -> None:
    """A line of progress, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Attackers:
    """The process that the floods come from."""

    def __init__(self, process: asyncio.subprocess.Process, world: World) -> None:
        self._process = process
        self._world = world
        threads = [unique("many") for _ in range(199)]
        stack, thread = world.stack, unique("mine")
        self._job = Job(
            *("", 0, stack.port, stack.env["REDIS_URL"], stack.key("stream")),
            customers=[stack.token(unique("hostile"), "customer") for _ in range(20)],
            member=stack.token(unique("hostile"), "customer", threads=[thread]),
            thread=thread,
            many=stack.token(unique("hostile"), "customer", threads=threads),
            threads=threads,
            half=stack.sign(user_id=unique("half"), name=f"half {HALF}", groups=[world.group]),
        )

    async def flood(self, name: str, seconds: float) -> Spent:
        """Let them attack, and learn what they spent."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = msgspec.structs.replace(self._job, flood=name, seconds=seconds)
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        async with asyncio.timeout(seconds + SENT_PATIENCE):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the attackers' process ended during {name!r}")
        return msgspec.json.decode(line, type=Spent)


@contextlib.asynccontextmanager
async def attackers(world: World) -> AsyncIterator[Attackers]:
    """The process; it ends with the block, and with this process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.floods"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us
    )
    try:
        yield Attackers(process, world)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Watch:
    """The two processes that serve, from one moment on."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pids = [process.pid for process in (*world.sockets, *world.bridges)]
        self._cpu = self._used()
        self._commands = self._executed()
        self._memory = self._most = self._resident()

    def _executed(self) -> int:
        return sum(command["calls"] for command in self._world.stack.redis.info("commandstats").values())

    def _used(self) -> float:
        """One that has ended has used nothing."""
        with contextlib.suppress(OSError):
            return machine.cpu_seconds(self._pids)
        return 0.0

    def _resident(self) -> int:
        with contextlib.suppress(OSError):
            return sum(map(machine.resident_bytes, self._pids))
        return 0

    def look(self) -> None:
        self._most = max(self._most, self._resident())

    @property
    def memory_mib(self) -> float:
        return (self._most - self._memory) / MIB

    def note(self, noticed: Noticed) -> None:
        """Write down what was used since then."""
        self.look()
        noticed.cpu = max(self._used() - self._cpu, 0.0)
        noticed.commands = self._executed() - self._commands
        noticed.memory_mib = self.memory_mib


class Siege:
    """A running system with its ordinary clients, and what they noticed so far."""

    def __init__(self, world: World, people: int) -> None:
        self._world = world
        self.report = Report(people)
        self._account = Account()
        self._flaps = 0
        self._whole: Watch | None = None

    async def begin(self) -> None:
        """Everything is started, and all ordinary clients are there."""
        world = self._world
        await asyncio.to_thread(self._start)
        await world.gather(count=self.report.people, each=min(3, len(world.threads)))
        await world.settle()
        self._account = world.account()

    def _start(self) -> None:
        """One of each: what is attacked has no other to lean on."""
        stack = self._world.stack
        self._world.bridges, self._world.sockets = [stack.start("runbridge")], [stack.start_sockets()]

    async def endure(self, flood: str, seconds: float, attackers: Attackers) -> Noticed:
        """One flood, during which the ordinary clients have traffic, type and look whether the server is well."""
        noticed = Noticed(flood)
        marks = [len(person.delays) for person in self._world.people]
        watch = Watch(self._world)
        self._whole = self._whole or watch
        began = time.monotonic()
        async with self._world.traffic(), self._busy(noticed, watch):
            if flood == CALM:
                await asyncio.sleep(seconds)
            else:
                noticed.spent = await attackers.flood(flood, seconds)
        await self._count(noticed)
        noticed.seconds = time.monotonic() - began
        watch.note(noticed)
        for person, mark in zip(self._world.people, marks, strict=True):
            noticed.delays.extend(person.delays[mark:])
        self.report.floods.append(noticed)
        self.report.memory_mib = self._whole.memory_mib
        processes = (*self._world.sockets, *self._world.bridges)
        self.report.ended = [process.name for process in processes if not process.is_running]
        return noticed

    async def _count(self, noticed: Noticed) -> None:
        """Everything that is on its way arrives, or is lost."""
        with contextlib.suppress(AssertionError):
            await self._world.settle()
        before, self._account = self._account, self._world.account()
        flaps, self._flaps = self._flaps, len(self._world.flaps())
        noticed.deliveries = self._account.expected - before.expected
        noticed.lost = self._account.lost - before.lost
        noticed.doubled = self._account.doubled - before.doubled
        noticed.reconnections = (self._account.endings - before.endings).total()
        noticed.presence_changes = self._flaps - flaps

    @contextlib.asynccontextmanager
    async def _busy(self, noticed: Noticed, watch: Watch) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._probe(noticed, watch)), asyncio.create_task(self._type())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _probe(self, noticed: Noticed, watch: Watch) -> None:
        while True:
            began = time.monotonic()
            try:
                answer = await self._world.stack.http("GET", "/healthz", within=5)
            except (OSError, HTTPException):
                noticed.unanswered += 1
            else:
                noticed.unanswered += answer.status != 200
                noticed.probes.append(time.monotonic() - began)
            watch.look()
            if self._whole is not None:
                self._whole.look()
            await asyncio.sleep(PROBE_SECONDS)

    async def _type(self) -> None:
        while True:
            with contextlib.suppress(CallFailed):  # its connection has ended for good, which is counted
                await random.choice(self._world.people).type()
            await asyncio.sleep(0.05)

    async def end(self) -> Report:
        """Look who is listed, and whether a process complained."""
        listed: set[str] = set()
        with contextlib.suppress(AssertionError, OSError):
            await self._world.presence_is_true()
        with contextlib.suppress(AssertionError, OSError):
            listed = await self._world.members()
        self.report.absent = len(listed ^ {person.user_id for person in self._world.people})
        self.report.traces = self._world.stack.logs.count("Traceback (most recent call last)")
        return self.report


async def attack(minutes: float, people: int, names: Sequence[str], directory: Path) -> Report:
    """Run all of it."""
    seconds = max(minutes * 60 / (len(names) + 1) - OVERHEAD_SECONDS, SHORTEST_SECONDS)
    redis = directory / "redis"
    redis.mkdir()
    with EmbeddedRedis(redis) as server:
        world = World(directory, server, threads=max(people // 4, 1), TRUSTED_PROXIES="127.0.0.1")
        world.ports = (world.stack.port,)
        siege = Siege(world, people)
        try:
            say(f"Starting a Redis, a socket server, a bridge and {people:,} ordinary clients ...")
            await siege.begin()
            async with attackers(world) as hostile:
                for number, name in enumerate((CALM, *names)):
                    say(f"{number} of {len(names)}: {name}, {seconds:.0f} s ...")
                    noticed = await siege.endure(name, seconds, hostile)
                    say(f"   {noticed.line()}")
                    if siege.report.ended:
                        break
            return await siege.end()
        finally:
            await world.stop()


class Parser(argparse.ArgumentParser):
    """It says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message[:1].upper()}{message[1:]}.\n")


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 24 * 60:
        raise argparse.ArgumentTypeError(f"minutes are a number above 0 and at most 1440, not {text!r}")
    return value


def _people(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) <= 5000):
        raise argparse.ArgumentTypeError(f"people are a whole number from 1 to 5000, not {text!r}")
    return int(text)


def _flood(text: str) -> str:
    if text not in FLOODS:
        raise argparse.ArgumentTypeError(f"there is no flood {text!r}, but {', '.join(FLOODS)}")
    return text


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m tests.faults.attack", description=__doc__)
    parser.add_argument(
        "--minutes", type=_minutes, default=3.0, help="in all (3); a flood takes 3 s at least"
    )
    parser.add_argument("--people", type=_people, default=200, help="ordinary clients (200)")
    parser.add_argument(
        "--flood", type=_flood, action="append", help="only this one; may be given several times (all)"
    )
    options = parser.parse_args(given)
    try:
        machine.raise_file_limit(options.people * 2 + 500)
    except OSError as error:
        parser.error(str(error))
    return options


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    # A shell starts what runs in the background deaf to SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # At SIGINT asyncio cancels the main task; an exception inside another task would be logged with a traceback.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        django.setup()
        with tempfile.TemporaryDirectory() as directory:
            report = asyncio.run(
                attack(options.minutes, options.people, options.flood or [*FLOODS], Path(directory))
            )
    except KeyboardInterrupt:
        say("Stopped; nothing is left running.")
        return 130
    except NoServer as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(report.text())
    return 1 if report.faults() else 0


if __name__ == "__main__":
    raise SystemExit(main())
