"""A system under measurement, and a running instance of it."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import jwt

from bench import machine
from bench.publishing import Command
from bench.wires import User, Wire
from realtime.testing.embedded_redis import EmbeddedRedis, die_with

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "bench" / "peers"
KEY = "only for the benchmark, as it has to be the same everywhere"
"""The key of every token: all systems use HS256."""
START_SECONDS = 30.0
STOP_SECONDS = 5.0
TWO_SERVERS = "j"
"""The scenario in which the connections are spread over two servers."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process of a peer."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: str = ""
    """The line that it prints once it is ready; empty: it is ready when its port accepts connections."""
    port: int = 0


class Peer(ABC):
    """A system: stateless, so that it can be sent to the load generator's process."""

    name: ClassVar[str]
    title: ClassVar[str]
    wire: ClassVar[Wire]
    guarantee: ClassVar[str] = "at most once"
    scenarios: ClassVar[str] = "abcdefj"
    """The scenarios that it supports; g and i need recovery."""
    slow: ClassVar[bool] = False
    """Whether bursts take so long that they are measured only once."""
    reference: ClassVar[bool] = False
    """Whether it is a reference, measured only when named, not a peer."""

    @abstractmethod
    def programs(self, scenario: str, ports: Sequence[int], redis: Path) -> list[Program]:
        """Return the programs to start, first those that hold the connections: one for each port."""

    @abstractmethod
    def command(self, scenario: str, event: str, data: Mapping[str, Any]) -> Command:
        """Return the command with which a backbone publishes an event to the room of `data["thread_id"]`."""

    def script(self) -> bytes:
        """Return the Lua script that its commands run by its hash, if any."""
        return b""

    def missing(self) -> str | None:
        """Return the name of a missing dependency, if any."""
        return None

    def user(self, index: int, thread: str, group: str = "") -> User:
        """Return a user whose token allows this thread: with a group an attendant, else a customer."""
        now = int(time.time())
        claims = {
            "token_type": "access",
            "jti": f"{index:032x}",
            "user_id": f"user-{index}",
            "role": "attendant" if group else "customer",
            "name": f"User {index}",
            "threads": [thread],
            "iat": now,
            "exp": now + 86400,
        } | ({"groups": [group]} if group else {})
        return User(f"user-{index}", jwt.encode(claims, KEY, "HS256"), thread, group)


def numbered(name: str, index: int) -> str:
    """Return the name of one of several programs of the same kind."""
    return f"{name}-{index + 1}" if index else name


def free_ports(count: int) -> tuple[int, ...]:
    """Return ports that no program listens on, below those that Linux gives to clients (from 32768)."""
    candidates = random.sample(range(20_000, 32_768), 1000)
    return tuple(islice(filter(_is_free, candidates), count))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


class Running:
    """A peer with its own Redis, pinned: the peer to one core, Redis to the other. Context manager."""

    def __init__(self, peer: Peer, scenario: str, logs: Path, root: Path = ROOT) -> None:
        self.peer = peer
        self.ports = free_ports(2 if scenario == TWO_SERVERS else 1)
        self.scenario = scenario
        self._logs = logs
        self._root = root
        """The folder whose code runs, if the peer is this project."""
        self._redis = EmbeddedRedis()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        server_core, other_core = machine.cores()
        self._redis.__enter__()
        try:
            machine.pin(self.redis_pid, other_core)
            programs = self.peer.programs(self.scenario, self.ports, self._redis.socket)
            for program in programs:
                self._start(program, server_core)
            for program in programs:
                self._wait(program)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._redis.__exit__(kind, error, stack)

    @property
    def redis_pid(self) -> int:
        assert self._redis.process is not None  # noqa: S101  (it runs)
        return self._redis.process.pid

    @property
    def redis_socket(self) -> Path:
        return self._redis.socket

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the system, first the one that holds the connections."""
        return {name: process.pid for name, process in self._processes.items()}

    def _log(self, program: Program) -> Path:
        return self._logs / f"{program.name}.log"

    def _start(self, program: Program, core: int) -> None:
        with self._log(program).open("wb") as output:
            self._processes[program.name] = subprocess.Popen(  # noqa: S603
                program.command,
                cwd=self._root,
                env={**_environment(self._root), **program.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=partial(_prepare, os.getpid(), core),  # noqa: PLW1509
            )

    def _wait(self, program: Program) -> None:
        process, log = self._processes[program.name], self._log(program)
        deadline = time.monotonic() + START_SECONDS
        while not (
            program.ready in log.read_text(errors="replace") if program.ready else _accepts(program.port)
        ):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self.peer.title}: {program.name} did not start:\n{log.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.05)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _environment(root: Path) -> dict[str, str]:
    """Return our environment without the variables that would configure a server."""
    mine = ("JWT_", "REALTIME_", "REDIS_", "SOCKETS_", "NODE_", "DJANGO_", "COVERAGE_", "COV_", "LOG_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    return {**env, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}


def _prepare(parent: int, core: int) -> None:
    die_with(parent)
    os.sched_setaffinity(0, {core})
