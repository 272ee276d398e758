"""The wheel runs without the repository, beside the packages of this environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.harness import ROOT
from tests.example_environment import example
from tests.packages.building import PROJECT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("side", "command"), [("sockets", "check"), ("web", "check"), ("web", "collectstatic")]
)
def test_installed_wheel_runs_without_the_repository(
    installed: Path, tmp_path: Path, side: str, command: str
):
    env = {**example(side), "DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}"}
    manage = installed.parents[2] / "manage.py"
    done = subprocess.run(
        [installed, manage, command, *(["--noinput"] if command == "collectstatic" else [])],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_installed_package_writes_nothing_beside_its_code(installed: Path, tmp_path: Path, redis_url: str):
    [site] = installed.parents[1].glob("lib/python*/site-packages")
    env = {**example("web"), "REDIS_URL": redis_url, "SOCKETS_PORT": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    del env["DATABASE_URL"], env["DJANGO_SETTINGS_MODULE"]
    before = files_of(site)
    for command in ("check", "migrate", "collectstatic --noinput"):
        subprocess.run(
            [installed, installed.parents[2] / "manage.py", *command.split()],
            cwd=tmp_path,
            env=env,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    with subprocess.Popen(
        [installed, installed.parents[2] / "manage.py", "runsockets"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
        server.terminate()
    assert files_of(site) == before
    assert {path.name for path in tmp_path.iterdir()} == {"db.sqlite3", "static"}


def files_of(folder: Path) -> dict[str, int]:
    """The files below a folder, by the time of their last change."""
    return {
        str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts
    }


def realtime(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**example("sockets"), "PATH": os.environ["PATH"]}
    env.pop("DJANGO_SETTINGS_MODULE")
    command = [installed, "-m", "realtime", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_console_script_runs_without_the_repository(installed: Path, tmp_path: Path):
    done = realtime(installed, tmp_path, "token", "--user", "7", "--role", "attendant")
    assert (done.returncode, done.stderr, done.stdout.count(".")) == (0, "", 2)
    assert realtime(installed, tmp_path, "--version").stdout == f"realtime-sockets {PROJECT['version']}\n"


def test_installed_documentation_is_found_and_read(installed: Path, tmp_path: Path):
    folder, *pages = realtime(installed, tmp_path, "docs").stdout.splitlines()
    assert (Path(folder) / "deploy" / "compose.yaml").exists()
    assert (Path(folder) / "Dockerfile").exists()
    assert {"  docs/deployment.md", "  client/README.md"} <= {*pages}
    assert realtime(installed, tmp_path, "docs", "client").stdout == (ROOT / "client/README.md").read_text()
    page = realtime(installed, tmp_path, "docs", "deployment").stdout
    assert page == (ROOT / "docs" / "deployment.md").read_text()
    done = realtime(installed, tmp_path, "docs", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no page nothing; the pages are " in done.stderr
