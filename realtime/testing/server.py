"""A real server for a test session: socket server and bridge as processes of their own, on a real Redis."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from realtime.redis.client import sync_client
from realtime.testing.background import BackgroundLoop
from realtime.testing.clients import Clients
from realtime.testing.embedded_redis import EmbeddedRedis, NoServer
from realtime.testing.overriding import overridden
from realtime.testing.process import HOST, merged
from realtime.testing.transports import Headers
from realtime.testing.websocket import WebSocket

REDIS_VARIABLE = "TEST_REDIS_URL"
"""The environment variable with the address of a Redis for tests; without it one is started."""
START_SECONDS = 60.0
STOP_SECONDS = 10.0


class RealtimeServer:
    """The server of a test session."""

    def __init__(
        self, port: int, overrides: dict[str, Any], processes: list[Process], client: Clients
    ) -> None:
        self.port = port
        self.client = client
        """Connects clients: see `realtime.testing.clients.Clients`."""
        self._overrides = overrides
        self.processes = processes
        """The bridge, and the socket server."""

    @property
    def redis_url(self) -> str:
        """Of its Redis."""
        return str(self._overrides["REALTIME"]["REDIS_URL"])

    @property
    def logs(self) -> str:
        """What its processes have written."""
        return "\n".join(f"--- {process.role}\n{process.output}" for process in self.processes)

    def url(self, namespace: str) -> str:
        """Where clients connect: `ws://127.0.0.1:40123/hub/`."""
        return f"ws://{HOST}:{self.port}/{namespace}/"

    @contextlib.contextmanager
    def in_use(self) -> Iterator[RealtimeServer]:
        """While the block runs, this process publishes to the server's Redis. At the end its clients are closed."""
        with overridden(merged(settings, self._overrides)):
            try:
                yield self
            finally:
                self.client.close()

    @property
    def ended(self) -> str:
        """The process that has ended, and what it wrote; empty while all of them run."""
        return "\n".join(filter(None, (process.ended for process in self.processes)))


class Process:
    """A process of the server, its output in a file."""

    def __init__(self, role: str, directory: Path, overrides: Mapping[str, Any]) -> None:
        self.role = role
        self._log = directory / f"{role}.log"
        order = {"role": role, "module": _module(), "settings": overrides, "parent": os.getpid()}
        with self._log.open("wb") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "realtime.testing.process"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C reaches pytest only, which stops this
            )
        assert self._popen.stdin is not None  # noqa: S101
        with self._popen.stdin as stdin:
            stdin.write(json.dumps(order).encode())

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it has written such a line. Raises `ServerFailed`."""
        deadline = time.monotonic() + START_SECONDS
        while (found := re.search(pattern, self.output, re.MULTILINE)) is None:
            if self.ended:
                raise ServerFailed(self.ended)
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.role} has not started within {START_SECONDS:g} s:\n{self.output}")
            time.sleep(0.02)
        return found

    @property
    def ended(self) -> str:
        """With which status it has ended, and what it wrote; empty while it runs."""
        status = self._popen.poll()
        return "" if status is None else f"{self.role} has ended with {status}:\n{self.output}"

    def wait(self) -> int:
        """Wait for its end, and return its exit status."""
        return self._popen.wait(STOP_SECONDS)

    def stop(self) -> None:
        """End the process."""
        self._popen.terminate()
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


class ServerFailed(Exception):
    """A process of the server did not start; the message has what it wrote."""


def _module() -> str:
    try:
        return str(settings.SETTINGS_MODULE)
    except AttributeError as error:
        raise ImproperlyConfigured(
            "realtime_server starts processes with the settings module of the project, but the settings were made by "
            "settings.configure(): set DJANGO_SETTINGS_MODULE."
        ) from error


@contextlib.contextmanager
def running_server(more: Mapping[str, Any] | None = None) -> Iterator[RealtimeServer]:
    """Run socket server and bridge, with the project's own settings, while the block runs.

        with running_server() as server, server.in_use():
            client = server.client.sync(user=7, role="attendant")

    Args:
        more: Settings that replace the project's in these processes and in tests; `REALTIME` entry by entry.

    Raises:
        ServerFailed: A process, or Redis, did not start.
    """
    more = more or {}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="realtime-testing-")))
        url, prefix = _redis(stack)
        own = {"DRAIN_SECONDS": 0, **more.get("REALTIME", {}), "REDIS_URL": url, "PREFIX": prefix}
        overrides = {**more, "REALTIME": own}
        processes: list[Process] = []
        for role in ("bridge", "sockets"):
            processes.append(Process(role, directory, overrides))
            stack.callback(processes[-1].stop)
        bridge, sockets = processes
        bridge.wait_for("^ready$")
        port = int(sockets.wait_for("^port ([0-9]+)$")[1])
        sockets.wait_for("^ready$")
        loop = stack.enter_context(BackgroundLoop())

        async def connect(path: str, headers: Headers) -> WebSocket:
            return await WebSocket.open(f"ws://{HOST}:{port}{path}", headers)

        yield RealtimeServer(port, overrides, processes, Clients(loop, connect))


def _redis(stack: contextlib.ExitStack) -> tuple[str, str]:
    """Address and prefix: a Redis of its own, or a part of its own in the one that the environment names."""
    if not (url := os.environ.get(REDIS_VARIABLE)):
        return _embedded(stack), "realtime"
    prefix = f"test-{uuid4().hex[:12]}"
    stack.callback(_clear, url, prefix)
    return url, prefix


def _embedded(stack: contextlib.ExitStack) -> str:
    try:
        return stack.enter_context(EmbeddedRedis()).url
    except NoServer as error:
        raise ServerFailed(
            f"{error} For tests: pip install 'realtime-sockets[testing]', or set {REDIS_VARIABLE}."
        ) from error


def _clear(url: str, prefix: str) -> None:
    """Delete what was written under a prefix."""
    with overridden({"REALTIME": {**getattr(settings, "REALTIME", {}), "REDIS_URL": url}}):
        client: Any = sync_client()
        for name in client.scan_iter(f"*{prefix}*"):
            client.delete(name)
