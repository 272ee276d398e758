"""What a team has before it begins: a folder, an environment, a Redis, and the packages as they will be published."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.e2e.harness import ROOT, free_port

CLIENT = ROOT / "client"
_NO_SOURCE = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "db.sqlite3*", "node_modules")
_WHEEL = re.compile(r'"(realtime-sockets(\[[\w,]+\])?)"')
_PORTS = ("8000", "8001")
"""The ports of the pages; each walk has its own instead."""


class Stopped(Exception):
    """The walk cannot go on; the message says where, and why."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    output: str


class Workshop:
    """A folder outside the checkout. `project` is the team's; nothing of the checkout is on its path."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.environment = folder / "venv"
        self.ports = {printed: str(free_port()) for printed in _PORTS}
        self._redis_url = redis_url
        self.project.mkdir(parents=True)

    def build(self) -> None:
        """Make the wheel and the npm package of the checkout, and an empty environment."""
        source = shutil.copytree(ROOT, self.folder / "source", ignore=_NO_SOURCE)
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
        self.must([*pip, "wheel", "--no-deps", "--wheel-dir", str(self.folder), str(source)])
        shutil.rmtree(source)
        self.must(["npm", "pack", str(CLIENT), "--silent", "--pack-destination", str(self.folder)])
        venv.create(self.environment, with_pip=True)

    @property
    def wheel(self) -> Path:
        [found] = self.folder.glob("realtime_sockets-*.whl")
        return found

    @property
    def tarball(self) -> Path:
        [found] = self.folder.glob("realtime-sockets-*.tgz")
        return found

    @cached_property
    def env(self) -> dict[str, str]:
        """The environment of the team's terminals."""
        kept = ("HOME", "LANG", "LC_ALL", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "TMPDIR")
        proxies = [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("PIP_")]
        return {
            **{name: os.environ[name] for name in (*kept, *proxies) if name in os.environ},
            "PATH": os.pathsep.join([str(self.environment / "bin"), os.environ["PATH"]]),
            "VIRTUAL_ENV": str(self.environment),
            "REDIS_URL": self._redis_url,
            "PYTHONUNBUFFERED": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
            "NODE_TOOLS": str(CLIENT / "node_modules"),
            "DJANGO_COLORS": "nocolor",
        }

    def here(self, text: str) -> str:
        """A text of a page, with the ports of this walk."""
        for printed, ours in self.ports.items():
            text = text.replace(printed, ours)
        return text

    def bash(self, command: str) -> list[str]:
        """What runs a command of a page, with the ports of this walk, and the packages that are not published yet."""
        command = command.replace("npm install realtime-sockets", f"npm install {self.tarball}")
        return ["bash", "-c", self.here(_WHEEL.sub(rf'"\1 @ {self.wheel.as_uri()}"', command))]

    def run(self, command: str, within: float) -> Ended:
        """Run a line of a terminal. Raises `Stopped` if it does not end."""
        try:
            done = subprocess.run(
                self.bash(command), cwd=self.project, env=self.env, timeout=within, check=False,
                text=True, errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Stopped(f"it has not ended after {within:.0f} s: $ {command}") from error
        return Ended(done.returncode, done.stdout)

    def must_be_apart(self) -> None:
        """Raises `Stopped` if the project has used anything of the checkout."""
        code = "import realtime, sys; print(realtime.__file__, *sys.path, sep='\\n')"
        origin, *path = self.run(f'python -c "{code}"', within=60).output.splitlines()
        if not Path(origin).is_relative_to(self.environment) or any(
            entry.startswith(str(ROOT)) for entry in path
        ):
            raise Stopped(f"the project uses the checkout: {origin}, {path}")

    @staticmethod
    def must(command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Run a command of ours. Raises `Stopped` with what it wrote if it fails."""
        done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=False)
        if done.returncode:
            raise Stopped(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
