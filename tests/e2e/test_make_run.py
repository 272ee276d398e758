"""`make run`: everything comes up, a message goes through the printed way, and nothing stays."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL

import pytest
import redis
from websockets.asyncio.client import connect

from dev.run import KEYS, read_environment
from tests.e2e.harness import PATIENCE, ROOT, Client, eventually, free_port, python

PACKAGES = ("realtime", "hub", "portal", "presence", "demo", "dev")


HERE = "import pathlib, sys; from dev.run import main; sys.exit(main(pathlib.Path(sys.argv[1])))"


class Run:
    """`make run` after its set-up, in a terminal of its own: in a copy of the project, or with what it keeps in
    another folder."""

    def __init__(self, checkout: Path, **env: str) -> None:
        self.checkout = checkout
        is_copy = (checkout / "realtime").exists()
        self.sockets, self.web = free_port(), free_port()
        self.log = checkout / f"{self.sockets}.log"
        self.shell = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JWT_", "REALTIME_", "DJANGO_", "COVERAGE_" if is_copy else "JWT_"))
            and name not in {"DEBUG", "SECRET_KEY", "REDIS_URL", "DATABASE_URL"}
        }
        if not is_copy:
            env = {"DATABASE_URL": f"sqlite:///{checkout / 'db.sqlite3'}", **env}
        command = ["-m", "dev.run"] if is_copy else ["-c", HERE, str(checkout)]
        with self.log.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, *command],
                cwd=checkout if is_copy else ROOT,
                env={
                    **self.shell,
                    "SOCKETS_PORT": str(self.sockets),
                    "WEB_PORT": str(self.web),
                    **env,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(SIGHUP, signal.SIG_DFL),  # noqa: PLW1509  (pytest may run under nohup)
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    async def says(self, text: str) -> None:
        def said() -> bool:
            assert self.popen.poll() is None, self.output
            return text in self.output

        await eventually(said)

    async def wait(self, within: float = PATIENCE) -> int:
        await eventually(lambda: self.popen.poll() is not None, within)
        return self.popen.returncode

    def press_ctrl_c(self) -> None:
        """A terminal sends SIGINT to the whole foreground process group."""
        os.killpg(self.popen.pid, SIGINT)

    @property
    def token(self) -> str:
        [token] = re.findall(r"^ +(eyJ\S+)$", self.output, re.MULTILINE)
        return token

    def printed(self, command: str) -> list[str]:
        line = next(line for line in self.output.splitlines() if command in line and "thread:message" in line)
        return shlex.split(line)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, as a clone has it."""
    copy = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "manage.py", copy)
    return copy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this project's code keeps what else stands beside manage.py: keys and the database."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "manage.py").symlink_to(ROOT / "manage.py")
    return folder


@pytest.fixture
def make_run(folder: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(where: Path = folder, **env: str) -> Run:
        runs.append(Run(where, **env))
        return runs[-1]

    yield start
    for run in runs:
        if run.popen.poll() is None:
            run.popen.kill()
            run.popen.wait()
        assert "Traceback" not in run.output, run.output
        run.log.unlink()


def descendants(pid: int) -> dict[int, str]:
    """Every process below this one (proc(5)) with its start time, since an id can be used again."""
    children: dict[int, list[int]] = {}
    started: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            started[int(entry.name)] = fields[19]
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            found[child] = started[child]
            waiting.append(child)
    return found


def still_there(processes: dict[int, str]) -> dict[int, str]:
    def is_there(pid: int, started: str) -> bool:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        return fields[0] != "Z" and fields[19] == started

    return {pid: started for pid, started in processes.items() if is_there(pid, started)}


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def left_in(checkout: Path) -> set[str]:
    return {path.name for path in (checkout / ".run").iterdir()}


async def test_printed_commands_send_a_message_to_the_printed_token_and_ctrl_c_leaves_nothing(
    make_run, copy: Path
):
    run = make_run(copy)
    await run.says("Ctrl-C stops it")
    for line in ("ana / demo", f"http://127.0.0.1:{run.web}/admin/", f"ws://127.0.0.1:{run.sockets}/portal/"):
        assert line in run.output
    processes = descendants(run.popen.pid)
    assert len(processes) >= 5
    server = Path(run.printed("redis-cli")[2])
    assert server.is_socket()

    async with connect(
        f"ws://127.0.0.1:{run.sockets}/hub/", additional_headers={"Authorization": f"Bearer {run.token}"}
    ) as websocket:
        client = Client(websocket)
        await client.expect("connection:ready")
        await client.call("join:thread", {"thread_id": "42"})

        subprocess.run(run.printed("manage.py publish"), cwd=run.checkout, env=run.shell, check=True)
        assert (await client.expect("thread:message"))["data"]["body"] == "hi"

        _, _, _, _, channel, message = run.printed("redis-cli")
        with redis.Redis(unix_socket_path=str(server)) as backbone:
            assert backbone.publish(channel, message) == 1
        assert (await client.expect("thread:message"))["data"] == json.loads(message)["data"]

        run.press_ctrl_c()
        assert await run.wait() == 0
        await client.expect_close()
    assert not still_there(processes)
    assert not server.exists()
    assert left_in(run.checkout) == {"development.env"}
    for command in ("runsockets", "runweb"):
        done = without_debug(run, command)
        assert done.returncode != 0
        assert "_KEY is not set" in done.stderr
        assert "Traceback" not in done.stderr


def without_debug(run: Run, command: str) -> subprocess.CompletedProcess[str]:
    """What is started in that folder by an operator who forgot DEBUG, and everything else."""
    return python("manage.py", command, folder=run.checkout, env=run.shell)


@pytest.mark.slow
async def test_keys_survive_and_everything_ends_when_one_process_does(make_run, folder: Path):
    file = folder / ".run/development.env"
    before = read_environment(file)
    run = make_run()
    await run.says("Ctrl-C stops it")
    during = read_environment(file)
    assert file.stat().st_mode & 0o777 == 0o600
    processes = descendants(run.popen.pid)
    [bridge] = [pid for pid in processes if command_line(pid).endswith("manage.py runbridge ")]
    os.kill(bridge, SIGKILL)
    assert await run.wait() == 1
    assert "bridge was killed by SIGKILL, so everything was stopped." in run.output
    assert not still_there(processes)
    after = read_environment(file)
    assert set(after) == {*KEYS}
    for name in KEYS:
        assert before.get(name, after[name]) == during[name] == after[name]


@pytest.mark.slow
@pytest.mark.parametrize("how", [SIGHUP, SIGKILL])
async def test_nothing_stays_however_it_ends(make_run, how: signal.Signals):
    """SIGHUP is turned into SIGTERM."""
    run = make_run()
    await run.says("Ctrl-C stops it")
    processes = descendants(run.popen.pid)
    run.popen.send_signal(how)
    assert await run.wait() == (-SIGKILL if how == SIGKILL else 0)
    await eventually(lambda: not still_there(processes))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["Starting Redis", "Preparing the database", "Starting sockets"])
async def test_ctrl_c_during_the_start_stops_it_calmly(make_run, moment: str):
    run = make_run()
    await run.says(moment)
    processes = descendants(run.popen.pid)
    run.press_ctrl_c()
    assert await run.wait() == 0
    await eventually(lambda: not still_there(processes))
    assert left_in(run.checkout) <= {"development.env"}


@pytest.mark.parametrize("side", ["SOCKETS", "WEB"])
async def test_taken_port_is_said_in_one_sentence_before_anything_starts(make_run, side: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = make_run(**{f"{side}_PORT": str(port)})
        assert await run.wait() == 2
    assert run.output.splitlines() == [
        f"Cannot listen on 127.0.0.1:{port} (Address already in use): stop what uses it, or set {side}_PORT "
        "to another port."
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"SOCKETS_PORT": "http"}, "SOCKETS_PORT must be a number from 1 to 65535, got 'http'."),
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "REDIS_URL is set, but cannot be used: "),
        ({"REDIS_URL": "localhost"}, "REDIS_URL is set, but cannot be used: "),
        ({"JWT_LEEWAY": "soon"}, "migrate failed: Configuration error: JWT_LEEWAY must be a number"),
    ],
)
async def test_wrong_environment_is_said_in_one_sentence(make_run, env: dict[str, str], sentence: str):
    run = make_run(**env)
    assert await run.wait() == 2
    assert run.output.splitlines()[-1].startswith(sentence)


@pytest.mark.slow
async def test_second_one_in_the_same_folder_is_refused(make_run):
    first = make_run()
    await first.says("Starting Redis")
    second = make_run()
    assert await second.wait() == 2
    assert second.output == "It is already running from this folder.\n"
    first.press_ctrl_c()
    assert await first.wait() == 0
