"""The socket server and the bridge in a team's own project, with every setting left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from websockets.sync.client import connect

from tests.e2e.harness import ROOT, free_port, python

PUBLISH = "from realtime.publisher import publish; publish('chat:ended', {'thread_id': 42}, rooms=['user:7'])"


class Project:
    """A project made by `django-admin startproject`, with `realtime` among its apps."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": redis_url,
            "REALTIME_PREFIX": f"o{uuid4().hex[:8]}",
        }
        subprocess.run([sys.executable, "-m", "django", "startproject", "shop", folder], check=True)
        with (folder / "shop" / "settings.py").open("a") as settings:
            settings.write("INSTALLED_APPS += ['realtime']\n")

    def manage(self, *command: str) -> str:
        done = python("manage.py", *command, folder=self.folder, env=self.env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextmanager
    def running(self, *command: str) -> Iterator[None]:
        process = subprocess.Popen(
            [sys.executable, "manage.py", *command],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                assert process.stdout
                assert process.stdout.readline() == "ready\n"
                yield
            finally:
                process.terminate()


@pytest.fixture
def project(tmp_path: Path, redis_url: str) -> Project:
    return Project(tmp_path, redis_url)


@pytest.mark.slow
def test_message_of_a_project_without_settings_arrives(project: Project):
    port = free_port()
    token = project.manage("issuetoken", "--user", "7", "--role", "customer")
    with ExitStack() as stack:
        stack.enter_context(project.running("runsockets", "--port", str(port)))
        stack.enter_context(project.running("runbridge"))
        headers = {"Authorization": f"Bearer {token}"}
        client = stack.enter_context(connect(f"ws://127.0.0.1:{port}/portal/", additional_headers=headers))
        assert json.loads(client.recv())["event"] == "connection:ready"
        project.manage("shell", "-c", PUBLISH)
        assert json.loads(client.recv())["event"] == "chat:ended"
