"""A team's own project, with the wheel and without extras."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Backbone:
    """A new environment with the wheel alone, and a project made by `django-admin startproject`."""

    python: Path
    folder: Path
    redis_url: str
    prefix: str

    def manage(self, *command: str, apps: str = "realtime") -> subprocess.CompletedProcess[str]:
        """Run a command of the project with these apps, besides Django's."""
        env = {"APPS": apps, "REDIS_URL": self.redis_url, "REALTIME_PREFIX": self.prefix}
        return subprocess.run(
            [self.python, "manage.py", *command],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], **env},
            capture_output=True,
            text=True,
            check=False,
        )

    def succeed(self, *command: str, apps: str = "realtime") -> str:
        """What a command prints that succeeds without a warning."""
        done = self.manage(*command, apps=apps)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


def pip(python: Path) -> list[str | Path]:
    """The pip that runs these tests, at work in another environment: to install it there takes its time."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
