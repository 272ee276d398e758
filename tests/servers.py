"""Several Redis-compatible servers that belong together, on loopback."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import redis

from realtime.testing.embedded_redis import EmbeddedRedis, find_server
from tests.e2e.harness import PATIENCE, Process, free_port

HOST = "127.0.0.1"
NAME = "shop"
DOWN_AFTER_MS = 1000
"""A server that does not answer for this time counts as dead."""


def until(condition: Callable[[], Any], within: float = PATIENCE) -> None:
    """The same as `eventually`, from synchronous code."""
    deadline = time.monotonic() + within
    while True:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, f"still not true after {within} s: {condition}"
        time.sleep(0.02)


class Server(EmbeddedRedis):
    """One of several servers: it has a port, on which the other servers find it."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.port, self.cluster_port = free_port(), free_port()
        directory.mkdir()
        ports = ("--port", str(self.port), "--cluster-port", str(self.cluster_port))
        super().__init__(directory, *ports, "--bind", HOST, *arguments)

    def call(self, *command: str | int) -> Any:
        """One command."""
        with self.client() as client:
            return client.execute_command(*command)


class Watched:
    """A primary, its replica, and three Sentinels that watch over them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.primary = Server(directory / "primary", "--repl-diskless-sync-delay", "0")
        self.replica = Server(
            directory / "replica",
            *("--replicaof", HOST, str(self.primary.port), "--masteruser", "replica", "--masterauth", "copy"),
        )
        self._ports = [free_port() for _ in range(3)]
        self._open = contextlib.ExitStack()

    @property
    def url(self) -> str:
        hosts = ",".join(f"{HOST}:{port}" for port in self._ports)
        return f"redis+sentinel://{hosts}/{NAME}/0"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opening:
            opening.enter_context(self.primary)
            self.primary.call("ACL", "SETUSER", "replica", "on", ">copy", "+@all")
            opening.enter_context(self.replica)
            until(lambda: self.replica.call("ROLE")[3] == b"connected")
            for port in self._ports:
                opening.callback(self._watch(port).stop)
            until(lambda: all(self._knows_all(port) for port in self._ports))
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _watch(self, port: int) -> Process:
        config = self._directory / f"sentinel-{port}.conf"
        config.write_text(
            f"port {port}\nbind {HOST}\ndir {self._directory}\n"
            f"sentinel monitor {NAME} {HOST} {self.primary.port} 2\n"
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {NAME} 5000\n"
        )
        log = self._directory / f"sentinel-{port}.log"
        return Process("sentinel", [str(find_server()), str(config), "--sentinel"], {}, log)

    @staticmethod
    def _knows_all(port: int) -> bool:
        with redis.Redis(host=HOST, port=port) as sentinel:
            state = sentinel.sentinel_master(NAME)
        return state["num-other-sentinels"] == 2 and state["num-slaves"] == 1 and not state["is_sdown"]

    def cut_off_the_replica(self) -> None:
        """From now on it gets nothing of what the primary takes."""
        self.primary.call("ACL", "SETUSER", "replica", "off")
        self.primary.call("CLIENT", "KILL", "TYPE", "replica")

    @property
    def is_promoted(self) -> bool:
        """Whether the replica has become the primary."""
        try:
            return self.replica.call("ROLE")[0] == b"master"
        except redis.RedisError:
            return False  # a replica that is promoted cuts its connections


class Cluster:
    """Three primaries, and a replica of each."""

    def __init__(self, directory: Path, *, replicas: bool = True) -> None:
        self.primaries = [self.server(directory / f"primary-{number}") for number in range(3)]
        self.replicas = [self.server(directory / f"replica-{number}") for number in range(3 * replicas)]
        self._open = contextlib.ExitStack()

    @staticmethod
    def server(directory: Path) -> Server:
        return Server(
            directory,
            *("--cluster-enabled", "yes"),
            *("--cluster-node-timeout", str(DOWN_AFTER_MS), "--repl-diskless-sync-delay", "0"),
            # On a busy machine an election may fail, and a replica would not stand for a later one.
            *("--cluster-replica-validity-factor", "0"),
        )

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{server.port}" for server in self.primaries)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opening:
            servers = [*self.primaries, *self.replicas]
            for server in servers:
                opening.enter_context(server)
            bounds = [0, 5461, 10923, 16384]
            for server, first, end in zip(self.primaries, bounds, bounds[1:], strict=False):
                server.call("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            for server in servers[1:]:
                self._introduce(server)
            until(lambda: all(len(server.call("CLUSTER", "SLOTS")) == 3 for server in servers))
            for primary, replica in zip(self.primaries, self.replicas, strict=False):
                name = primary.call("CLUSTER", "MYID").decode()
                until(lambda replica=replica, name=name: replica.call("CLUSTER", "REPLICATE", name))
            until(lambda: all(self._is_whole(server) for server in servers))
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _introduce(self, server: Server) -> None:
        self.primaries[0].call("CLUSTER", "MEET", HOST, server.port, server.cluster_port)

    def _is_whole(self, server: Server) -> bool:
        is_fine = b"cluster_state:ok" in server.call("CLUSTER", "INFO")
        return is_fine and (server in self.primaries or server.call("ROLE")[3] == b"connected")

    def is_promoted(self, number: int) -> bool:
        """Whether a replica has become the primary, and the Cluster is whole again."""
        replica = self.replicas[number]
        try:
            is_fine = b"cluster_state:ok" in replica.call("CLUSTER", "INFO")
            return is_fine and replica.call("ROLE")[0] == b"master"
        except redis.RedisError:
            return False
