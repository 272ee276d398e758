"""`make run`: the whole system in the foreground. It brings its own Redis and keys, and leaves nothing running."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from honcho.manager import Manager
from honcho.printer import Message, Printer
from honcho.process import Popen, Process

from dev.embedded_redis import EmbeddedRedis, NoServer, die_with
from realtime.checks.startup import DEVELOPMENT_KEY
from realtime.redis.url import parse
from realtime.server.uvicorn_server import bind, without_brackets

PROJECT = Path(__file__).resolve().parent.parent
PROCESSES = {"sockets": "runsockets", "bridge": "runbridge", "recorder": "runrecorder", "web": "runweb"}
"""What runs, and the management command that runs it. Each says `ready`."""
KEYS = ("SECRET_KEY", "JWT_SIGNING_KEY")
TOKEN_SECONDS = 86400
PING_SECONDS = 5

EXAMPLE = ("thread:message", {"thread_id": "42", "message_id": "1", "body": "hi"})


class CannotRun(Exception):
    """Nothing was started; the text says why, in one sentence."""


class Development:
    """The system as `make run` starts it, in the project's folder `project`.

    `environ` is what the user set: it wins over everything that is made up here.
    """

    def __init__(self, project: Path, environ: Mapping[str, str]) -> None:
        self.project = project
        self.folder = project / ".run"
        self.given = {name: value for name, value in environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        self.sockets = _address(environ, "SOCKETS", "8001")
        self.web = _address(environ, "WEB", "8000")

    def run(self) -> int:
        """Run until a signal comes or a process ends; returns the exit status.

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
        """The URL of the user's Redis, or of one that lives as long as this."""
        if url := self.given.get("REDIS_URL"):
            _ping(url)
            yield url
        else:
            print("Starting Redis ...", flush=True)  # noqa: T201
            with EmbeddedRedis(self.folder) as server:
                yield server.url

    @contextlib.contextmanager
    def _environment(self, redis_url: str) -> Iterator[dict[str, str]]:
        """The processes' environment, while its made-up part is in a file for commands in other terminals.

        They read it if DEBUG=1 is set for them, too. The keys stay there, so that tokens and sessions survive a
        restart; the Redis does not.
        """
        file = self.folder / "development.env"
        kept = development_keys(read_environment(file))
        write_environment(file, {**kept, "REDIS_URL": redis_url})
        try:
            yield {
                "DEBUG": "1",
                "REALTIME_DRAIN_SECONDS": "1",  # nobody here is worth waiting for
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
        manager = _Manager(_Printer(banner(self.sockets, self.web, environment, token.strip())))
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
    """Raises `CannotRun` when nobody can listen there."""
    try:
        bind(host, port).close()
    except OSError as error:
        raise CannotRun(
            f"Cannot listen on {host}:{port} ({error.strerror}): stop what uses it, or set {side}_PORT to another port."
        ) from error


def _ping(url: str) -> None:
    try:
        # Of a Cluster, to the first server.
        seconds = {"socket_timeout": PING_SECONDS, "socket_connect_timeout": PING_SECONDS}
        pool = redis.ConnectionPool(**{**parse(url).sync_arguments(), **seconds})
        with redis.Redis.from_pool(pool) as client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        raise CannotRun(f"REDIS_URL is set, but there is no Redis: {error}") from error


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder: a second one would take away the first one's Redis. Raises `CannotRun`."""
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
    """Write `NAME=value` lines for the owner's eyes only; a reader sees the old file or the new one."""
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.writelines(f"{name}={value}\n" for name, value in values.items())
    new.replace(file)


def development_keys(kept: Mapping[str, str]) -> dict[str, str]:
    """The keys of the last run, or new ones. With DEBUG off a system check refuses them."""
    return {
        name: value
        if (value := kept.get(name, "")).startswith(DEVELOPMENT_KEY)
        else DEVELOPMENT_KEY + secrets.token_urlsafe(48)
        for name in KEYS
    }


def banner(sockets: tuple[str, int], web: tuple[str, int], environment: Mapping[str, str], token: str) -> str:
    """What to do with it, once it runs."""
    event, data = EXAMPLE
    url = environment["REDIS_URL"]
    page = f"http://{_reachable(web)}"
    channel = f"{environment.get('REALTIME_PREFIX') or 'realtime'}:events"
    python = (
        os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(PROJECT) else sys.executable
    )
    publish = ["env", "DEBUG=1", python, "manage.py", "publish", event, json.dumps(data)]
    cli = ["redis-cli", *_connection(url), "PUBLISH", channel, json.dumps({"event": event, "data": data})]
    return f"""
  Everything runs. Ctrl-C stops it.

  Demo     {page}/        ana / demo (attendant), carla / demo (customer)
  Admin    {page}/admin/  admin / demo
  Hub      ws://{_reachable(sockets)}/hub/
  Portal   ws://{_reachable(sockets)}/portal/
  Redis    {url}

  A token for the hub, as attendant Ana, good for {TOKEN_SECONDS // 3600} hours:
  {token}

  Send a message to everybody in thread 42, from another terminal in this folder:
  {shlex.join(publish)}
  or, from any language, as this does:
  {shlex.join(cli)}
"""


def _reachable(address: tuple[str, int]) -> str:
    """The address for a browser on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])  # noqa: S104
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def _connection(url: str) -> list[str]:
    parts = urlsplit(url)
    if (location := parse(url)).sentinels:
        host, port = location.sync_primary()
        return ["-h", host, "-p", str(port)]
    if location.nodes:
        host, port = location.nodes[0]
        return ["-c", "-h", host, "-p", str(port)]
    return ["-s", unquote(parts.path)] if parts.scheme == "unix" else ["-u", url]


# --- Processes ------------------------------------------------------------------------------------------


class _Process(Process):  # type: ignore[misc]
    """honcho's watcher of one child; both are gone soon after `make run`, even if that is killed."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._manager = os.getpid()
        self._child_ctor = self._start

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        # Ctrl-C in a terminal reaches the watchers too. They end when their child does.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        die_with(self._manager, signal.SIGKILL)
        super().run(events, ignore_signals)

    def _start(self, command: list[str], **named: Any) -> Popen:
        prepare = partial(_prepare_child, os.getpid())
        return Popen(command, shell=False, stdin=subprocess.DEVNULL, preexec_fn=prepare, **named)


def _prepare_child(watcher: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    die_with(watcher)


class _Manager(Manager):  # type: ignore[misc]
    """honcho's manager without its running commentary. `culprit` says who ended by itself, and how."""

    def __init__(self, printer: Printer) -> None:
        super().__init__(printer)
        self._process_ctor = _Process
        self._stop_wanted = False
        self.culprit = ""

    def terminate(self) -> None:
        if not self._all_started():
            self._stop_wanted = True  # honcho cannot stop what has not told its id yet
            return
        if not self._terminating:
            self.culprit = next(
                (
                    f"{name} {_how(process['returncode'])}"
                    for name, process in self._processes.items()
                    if process.get("returncode") is not None
                ),
                "",
            )
        super().terminate()

    def _system_print(self, data: str) -> None:
        if self._stop_wanted and self._all_started():
            self.terminate()


def _how(status: int) -> str:
    return (
        f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    )


class _Printer(Printer):  # type: ignore[misc]
    """Prints the banner once every process is ready."""

    def __init__(self, banner: str) -> None:
        super().__init__(sys.stdout, time_format="")  # log lines have their own time
        self._banner = banner
        self._expected = set(PROCESSES)

    def write(self, message: Message) -> None:
        try:
            super().write(message)
            if message.data.strip() == b"ready" and message.name in self._expected:
                self._expected.remove(message.name)
                if not self._expected:
                    print(self._banner, flush=True)  # noqa: T201
        except OSError:
            # Nobody reads any more: the terminal was closed, or what this was piped into.
            signal.raise_signal(signal.SIGTERM)


def main(project: Path = PROJECT) -> int:
    """The command line: no arguments, everything from the environment. Returns the exit status."""
    if sys.platform == "linux":
        multiprocessing.set_start_method("fork", force=True)  # the watchers' parent must be this process
    if os.environ.get("MAKELEVEL"):
        die_with(os.getppid())
    stop: Callable[..., None] = signal.default_int_handler
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` wants it
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
