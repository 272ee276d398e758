"""Real processes, a real Redis, and clients that speak the protocol: what the end-to-end tests are written in."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any, Self
from uuid import uuid4

import django
import jwt
import pytest
import redis
from websockets.asyncio.client import connect

from realtime.auth.issuing import issue
from realtime.redis import cluster
from realtime.redis.url import parse
from tests.asking import PATIENCE as PATIENCE
from tests.asking import eventually as eventually
from tests.e2e.client import QUIET as QUIET
from tests.e2e.client import Client as Client
from tests.e2e.plain_http import PlainHttp

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("shell", "--no-imports") if django.VERSION >= (5, 2) else ("shell",)
"""The command that runs Python code. It prints nothing of its own."""
SERVERS = ("uvicorn", pytest.param("daphne", marks=pytest.mark.slow))
"""Who serves the sockets. What is the same by daphne is proved again by daphne, but not with every change."""
CHEAP_LOGINS = {"DJANGO_SETTINGS_MODULE": "tests.settings_web"}
"""For the web side, and for what creates its users."""


def unique(prefix: str = "") -> str:
    """An id no other test uses."""
    return prefix + uuid4().hex[:12]


READY = "ready\n"
"""A line of its own: "Address already in use" is another."""


def _ports() -> Iterator[int]:
    """The ports of this test process, over and over.

    They lie below those that the kernel chooses, which it would soon give to another test, and no other process of the
    same run has them: a port that was free a moment ago is still free when a server listens on it.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw11").removeprefix("gw")) % 12
    ports = range(20_000 + worker * 1_000, 21_000 + worker * 1_000)
    start = secrets.randbelow(len(ports))  # `random` has the same seed in all test processes
    return itertools.cycle([*ports[start:], *ports[:start]])


_PORTS = _ports()


def free_port() -> int:
    """A port that nothing listens on, and that is not given again before the others of this process were."""
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def backbone(url: str, **more: Any) -> redis.Redis:
    """A client as a backbone has one."""
    if parse(url).nodes:
        return cluster.sync_client(parse(url), **more)
    return redis.Redis.from_pool(redis.ConnectionPool(**parse(url).sync_arguments(), **more))


def python(
    *arguments: Any, folder: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, to its end."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


class Process:
    """One process of the system, its output in a file."""

    def __init__(
        self, name: str, command: list[str], env: dict[str, str], log: Path, folder: Path = ROOT
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str = READY, within: float = PATIENCE) -> Self:
        deadline = time.monotonic() + within
        while text not in self.output:
            assert self._popen.poll() is None, (
                f"{self.name} ended with {self._popen.returncode}:\n{self.output}"
            )
            assert time.monotonic() < deadline, f"{self.name} never said {text!r}:\n{self.output}"
            time.sleep(0.02)
        return self

    def wait_until_listening(self, port: int) -> Self:
        """For a server that does not print `ready`."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return self
            time.sleep(0.05)
        raise AssertionError(f"{self.name} does not listen:\n{self.output}")

    def signal(self, number: Signals) -> None:
        self._popen.send_signal(number)

    def wait(self, within: float = PATIENCE) -> int:
        """Wait for its end and return its exit status."""
        return self._popen.wait(within)

    def stop(self, how: Signals = SIGTERM, within: float = PATIENCE) -> int:
        """End it and return its exit status."""
        if self._popen.poll() is None:
            self._popen.send_signal(how)
            try:
                self._popen.wait(within)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
                raise AssertionError(f"{self.name} did not stop within {within} s:\n{self.output}") from None
        return self._popen.returncode


class Stack(PlainHttp):
    """A whole system with settings of its own: socket servers, bridges, recorders, on one Redis.

    As a context manager it ends its processes, and looks whether they were calm unless the block has failed.
    """

    def __init__(self, directory: Path, redis_url: str, **env: str) -> None:
        self.directory = directory
        self.folder = ROOT
        """The processes run in this folder."""
        self.prefix = unique("t")
        self.port = free_port()
        self.server = "uvicorn"
        self.env = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("JWT_", "REALTIME_"))
            },
            "REDIS_URL": redis_url,
            "REALTIME_PREFIX": self.prefix,
            "DEBUG": "1",
            "SECRET_KEY": os.environ["SECRET_KEY"],
            "JWT_SIGNING_KEY": os.environ["JWT_SIGNING_KEY"],
            "ALLOWED_ORIGINS": "http://app.test",
            "DATABASE_URL": f"sqlite:///{directory / 'db.sqlite3'}",
            "LOG_FORMAT": "json",
            "PYTHONUNBUFFERED": "1",
            "REALTIME_DRAIN_SECONDS": "0",
            "REALTIME_PRESENCE_RETENTION": "0",  # the tests' dates grow old
            **env,
        }
        self.env.pop("DJANGO_SETTINGS_MODULE", None)
        self.redis = backbone(redis_url, decode_responses=True, encoding_errors="backslashreplace")
        self.processes: list[Process] = []
        self.tokens: set[str] = set()
        """Every token made here: none of them may turn up in a log."""

    def start(self, name: str, *command: str, ready: str = READY, **env: str) -> Process:
        """`start("runbridge")` starts `manage.py runbridge`; with a command, that command."""
        line = [sys.executable, *(command or (str(ROOT / "manage.py"), name))]
        log = self.directory / f"{len(self.processes)}-{name}.log"
        process = Process(name, line, {**self.env, **env}, log, self.folder)
        self.processes.append(process)
        return process.wait_for(ready) if ready else process

    def start_sockets(self, port: int | None = None, **env: str) -> Process:
        """A socket server on `port` (default: the stack's own), by uvicorn or daphne as `self.server` says."""
        port = port or self.port
        if self.server == "daphne":
            return self._start_daphne(port, env)
        return self.start("runsockets", SOCKETS_PORT=str(port), **env)

    def _start_daphne(self, port: int, env: dict[str, str]) -> Process:
        process = self.start(
            "daphne",
            *("-m", "daphne", "--bind", "127.0.0.1", "--port", str(port), "realtime.asgi:application"),
            ready="",
            **env,
        )
        return process.wait_until_listening(port)

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run Python as the processes run, to its end."""
        return python(*arguments, folder=self.folder, env={**self.env, **env})

    def manage(self, *arguments: str, **env: str) -> str:
        """Run a command that has to succeed; what it prints."""
        done = self.run("manage.py", *arguments, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start_all(self) -> Self:
        self.start("runbridge")
        self.start_sockets()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self.stop()
        if failure is None:
            self.assert_calm()

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()
        self.redis.close()

    @property
    def logs(self) -> str:
        return "\n".join(process.output for process in self.processes)

    def assert_calm(self) -> None:
        """No process wrote a stack trace, or anything of a token."""
        logs = self.logs
        traces = logs.split("Traceback (most recent call last)")[1:]
        assert not traces, f"{len(traces)} stack traces, the first: {traces[0][:4000]}"
        signatures = {token.rpartition(".")[2] for token in self.tokens}
        secrets = [part for part in signatures if len(part) > 20]
        leaks = [line[:500] for line in logs.splitlines() if any(secret in line for secret in secrets)]
        assert not leaks, leaks[:5]

    # --- A backbone ------------------------------------------------------------------------------

    def key(self, name: str) -> str:
        return f"{self.prefix}:{name}"

    def add(self, event: str, data: dict[str, Any], **more: Any) -> str:
        """Append to the durable stream; returns the entry's id."""
        return self.redis.xadd(
            self.key("stream"), {"message": json.dumps({"event": event, "data": data, **more})}
        )

    def publish(self, event: str, data: dict[str, Any], **more: Any) -> None:
        """Publish over Redis Pub/Sub."""
        self.redis.publish(self.key("events"), json.dumps({"event": event, "data": data, **more}))

    def dead_letters(self) -> list[dict[str, str]]:
        return [fields for _, fields in self.redis.xrange(self.key("dead"))]

    def transitions(self, user_id: str) -> list[dict[str, Any]]:
        """The user's presence transitions so far."""
        entries = [json.loads(fields["transition"]) for _, fields in self.redis.xrange(self.key("presence"))]
        return [entry for entry in entries if entry["user_id"] == user_id]

    # --- Clients ---------------------------------------------------------------------------------

    def url(self, namespace: str, scheme: str = "ws", port: int | None = None) -> str:
        return f"{scheme}://127.0.0.1:{port or self.port}/{namespace}/"

    def token(self, user_id: str = "7", role: str = "attendant", **claims: Any) -> str:
        token = issue(user_id=user_id, role=role, **claims)
        self.tokens.add(token)
        return token

    def sign(
        self,
        *,
        key: Any = None,
        algorithm: str = "HS256",
        header: dict[str, Any] | None = None,
        without: Iterable[str] = (),
        **claims: Any,
    ) -> str:
        """A token signed by hand: an attendant's good one, but for what is asked for."""
        now = int(time.time())
        payload = {
            "token_type": "access",
            "jti": uuid4().hex,
            "user_id": "7",
            "role": "attendant",
            "iat": now,
            "exp": now + 3600,
            **claims,
        }
        for name in without:
            del payload[name]
        token = jwt.encode(payload, key or self.env["JWT_SIGNING_KEY"], algorithm, headers=header)
        self.tokens.add(token)
        return token

    def sign_long(self, length: int, **claims: Any) -> str:
        """A valid token with exactly this number of characters."""
        for header in ("", "x", "xx"):  # base64 has no text of 4n + 1 characters
            short = len(self.sign(header={"pad": header}, pad="", **claims))
            about = (length - short) * 3 // 4
            for more in range(max(about - 2, 0), about + 3):
                token = self.sign(header={"pad": header}, pad="x" * more, **claims)
                if len(token) == length:
                    return token
        raise AssertionError(f"there is no token of {length} characters")

    @contextlib.asynccontextmanager
    async def client(
        self,
        namespace: str = "hub",
        user_id: str | None = None,
        role: str | None = None,
        *,
        port: int | None = None,
        token: str | None = None,
        query: str = "",
        **claims: Any,
    ) -> AsyncIterator[Client]:
        """A connected client that has read its `connection:ready`. `query` is that of its URL."""
        token = token or self.token(
            user_id or unique("u"), role or ("attendant" if namespace == "hub" else "customer"), **claims
        )
        async with connect(
            f"{self.url(namespace, port=port)}?{query}",
            additional_headers={"Authorization": f"Bearer {token}"},
        ) as websocket:
            client = Client(websocket)
            try:
                client.ready = (await client.expect("connection:ready"))["data"]
                yield client
            finally:
                await client.close()
