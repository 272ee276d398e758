"""`make run`: the whole system in the foreground, with a Redis and keys of its own. It leaves nothing running."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import redis

from dev.banner import PROJECT, TOKEN_SECONDS, banner
from dev.processes import PROCESSES, ForegroundManager, ReadyPrinter
from realtime.checks.tokens import DEVELOPMENT_KEY
from realtime.redis.url import parse
from realtime.server.uvicorn_server import bind, without_brackets
from realtime.testing.embedded_redis import EmbeddedRedis, NoServer, die_with

KEYS = ("SECRET_KEY", "JWT_SIGNING_KEY")
PING_SECONDS = 5


class CannotRun(Exception):
    """Nothing was started; the message is the reason, in one sentence."""


class Development:
    """The system as `make run` starts it, in the project's folder `project`.

    `environ` is the user's environment, which overrides everything that is generated here.
    """

    def __init__(self, project: Path, environ: Mapping[str, str]) -> None:
        self.project = project
        self.folder = project / ".run"
        self.given = {name: value for name, value in environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        self.sockets = _address(environ, "SOCKETS", "8001")
        self.web = _address(environ, "WEB", "8000")

    def run(self) -> int:
        """Run until a signal arrives or a process ends, and return the exit status.

        Raises `CannotRun` or `NoServer` when it cannot start.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with _only_one(self.folder):
            for name, (host, port) in (("SOCKETS", self.sockets), ("WEB", self.web)):
                check_port(name, host, port)
            with self._redis() as url, self._environment(url) as environment:
                return self._run({**environment, "REDIS_URL": url})

    @contextlib.contextmanager
    def _redis(self) -> Iterator[str]:
        """The URL of the user's Redis, or of one that runs as long as the block."""
        if url := self.given.get("REDIS_URL"):
            _ping(url)
            yield url
        else:
            print("Starting Redis ...", flush=True)  # noqa: T201
            with EmbeddedRedis(self.folder) as server:
                yield server.url

    @contextlib.contextmanager
    def _environment(self, redis_url: str) -> Iterator[dict[str, str]]:
        """The environment of the processes. Its generated part is in a file for commands in other terminals.

        They read the file if DEBUG=1 is set for them, too. The keys stay in it, so that tokens and sessions survive a
        restart; the address of Redis does not.
        """
        file = self.folder / "development.env"
        kept = development_keys(read_environment(file))
        write_environment(file, {**kept, "REDIS_URL": redis_url})
        try:
            yield {
                "DEBUG": "1",
                "REALTIME_DRAIN_SECONDS": "1",  # a restart in development does not wait for clients
                **kept,
                **self.given,
                "PYTHONUNBUFFERED": "1",
            }
        finally:
            write_environment(file, kept)

    def _run(self, environment: dict[str, str]) -> int:
        print("Preparing the database ...", flush=True)  # noqa: T201
        self._manage(environment, "migrate", "--verbosity", "0")
        if (self.project / "demo/management/commands/createdemo.py").exists():
            self._manage(environment, "createdemo")
        token = self._manage(
            environment,
            "issuetoken",
            *("--user", "1", "--role", "attendant", "--name", "Ana", "--ttl", str(TOKEN_SECONDS)),
        )
        print("Starting", ", ".join(PROCESSES), "...", flush=True)  # noqa: T201
        manager = ForegroundManager(ReadyPrinter(banner(self.sockets, self.web, environment, token.strip())))
        for name, command in PROCESSES.items():
            manager.add_process(name, self._command(command), env=environment)
        manager.loop()
        if manager.culprit:
            print(f"{manager.culprit}, so everything was stopped.", file=sys.stderr)  # noqa: T201
            return 1
        print("Stopped.")  # noqa: T201
        return 0

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.project / "manage.py"), *arguments]

    def _manage(self, environment: Mapping[str, str], *arguments: str) -> str:
        """Run a management command to its end and return what it printed. Raises `CannotRun`."""
        done = subprocess.run(  # noqa: S603
            self._command(*arguments),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # Ctrl-C is for us
        )
        if done.returncode:
            error = done.stderr.strip()
            if "Traceback" in error:
                error = error.splitlines()[-1]
            raise CannotRun(f"{arguments[0]} failed: {error}")
        return done.stdout


def _address(environ: Mapping[str, str], side: str, port: str) -> tuple[str, int]:
    text = environ.get(f"{side}_PORT") or port
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 65536:
        raise CannotRun(f"{side}_PORT must be a number from 1 to 65535, got {text!r}.")
    return without_brackets(environ.get(f"{side}_HOST") or "127.0.0.1"), int(text)


def check_port(side: str, host: str, port: int) -> None:
    """Raises `CannotRun` when the address is in use or not allowed."""
    try:
        bind(host, port).close()
    except OSError as error:
        raise CannotRun(
            f"Cannot listen on {host}:{port} ({error.strerror}): stop what uses it, or set {side}_PORT to another port."
        ) from error


def _ping(url: str) -> None:
    try:
        # With a Cluster, the first server is asked.
        seconds = {"socket_timeout": PING_SECONDS, "socket_connect_timeout": PING_SECONDS}
        pool = redis.ConnectionPool(**{**parse(url).sync_arguments(), **seconds})
        with redis.Redis.from_pool(pool) as client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        raise CannotRun(f"REDIS_URL is set, but cannot be used: {error}") from error


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Lock the folder: a second run would remove the Redis of the first. Raises `CannotRun`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise CannotRun("It is already running from this folder.") from error
    try:
        yield
    finally:
        os.close(handle)


def read_environment(file: Path) -> dict[str, str]:
    """The `NAME=value` lines of a file; none when there is no file."""
    lines = file.read_text().splitlines() if file.exists() else ()
    return {name: value for name, separator, value in (line.partition("=") for line in lines) if separator}


def write_environment(file: Path, values: Mapping[str, str]) -> None:
    """Write `NAME=value` lines that only the owner can read; a reader sees the old file or the new one."""
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.writelines(f"{name}={value}\n" for name, value in values.items())
    new.replace(file)


def development_keys(kept: Mapping[str, str]) -> dict[str, str]:
    """The keys of the last run, or new ones. With DEBUG off, a system check refuses them."""
    return {
        name: value
        if (value := kept.get(name, "")).startswith(DEVELOPMENT_KEY)
        else DEVELOPMENT_KEY + secrets.token_urlsafe(48)
        for name in KEYS
    }


def main(project: Path = PROJECT) -> int:
    """The command line, which has no arguments: the environment configures it. Returns the exit status."""
    if sys.platform == "linux":
        multiprocessing.set_start_method("fork", force=True)  # the watchers' parent must be this process
    if os.environ.get("MAKELEVEL"):
        die_with(os.getppid())
    stop: Callable[..., None] = signal.default_int_handler
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # `nohup` ignores it
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        return Development(project, os.environ).run()
    except (CannotRun, NoServer) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("Stopped.")  # noqa: T201
        return 0


if __name__ == "__main__":
    sys.exit(main())
