"""A project of another team, made by `django-admin startproject`, whose tests run in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from django.core.management import call_command

from realtime.conf import conf
from tests.blocks import titled
from tests.e2e.harness import ROOT

PAGE = titled("testing.md")
PLUGIN = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"][
    "realtime"
]

SETTINGS = """
INSTALLED_APPS += ["realtime", "support"]
SECRET_KEY = "a key of the project's own, and longer than fifty characters"
SIMPLE_JWT = {{"ALGORITHM": "HS256", "SIGNING_KEY": "another key of its own, of at least 32 bytes"}}
CHANNEL_LAYERS = {{"default": {{"BACKEND": "realtime.layers.RoomChannelLayer"}}}}
REALTIME = {{
    "REDIS_URL": "redis://127.0.0.1:1/0",  # there is none: no test may get here
    "NAMESPACES": [*{namespaces!r}, "support.realtime.OPS"],
    "EVENTS": ["support.realtime"],
}}
"""
URLS = """
from django.urls import path
from support.views import answer

urlpatterns = [path("threads/<int:thread_id>/", answer)]
"""
REALTIME = '''
from realtime.connections.consumer import NamespaceConsumer
from realtime.protocol.catalogue import client_event, server_event
from realtime.protocol.namespaces import Namespace, RoomKind
from realtime.protocol.payloads import Id, Payload

BOARD = RoomKind("board")


async def own_boards(principal, board_id):
    return board_id == principal.claims.get("board")


class OpsConsumer(NamespaceConsumer):
    """A consumer of the team's own."""


OPS = Namespace(
    name="ops", roles=("supervisor",), kinds=(BOARD,), policies={"board": own_boards},
    consumer="support.realtime.OpsConsumer",
)


@server_event("board:moved", namespaces={"ops"}, rooms=lambda payload: [f"board:{payload.board_id}"])
class BoardMoved(Payload, frozen=True):
    """A card was moved."""

    board_id: Id
'''


@dataclass
class Result:
    """The end of a process."""

    status: int
    output: str

    def assert_passed(self, count: int) -> None:
        """So many tests have passed, and nothing else has happened."""
        assert self.status == 0, self.output
        assert re.search(rf"\b{count} passed in ", self.output), self.output


class Project:
    """The project, in a folder of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._entry_points = directory.parent / f"{directory.name}-installed"
        self._pretend_to_be_installed()
        directory.mkdir()
        call_command("startproject", "shop", str(directory))
        with (directory / "shop" / "settings.py").open("a") as settings:
            settings.write(SETTINGS.format(namespaces=conf().namespaces))
        self.write("shop/urls.py", URLS)
        self.write("support/__init__.py", "")
        self.write("support/realtime.py", REALTIME)

    def _pretend_to_be_installed(self) -> None:
        """The entry points of pyproject.toml, as the wheel has them."""
        folder = self._entry_points / "realtime_sockets_of_this_test-0.dist-info"
        folder.mkdir(parents=True)
        name = "Name: realtime-sockets-of-this-test"
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\n{name}\nVersion: 0\n")
        (folder / "entry_points.txt").write_text(f"[pytest11]\nrealtime = {PLUGIN}\n")

    def write(self, path: str, text: str) -> None:
        """Write a file of the project."""
        file = self.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def run(self, *command: str, **env: str) -> Result:
        """Run a command in the project, and wait for its end."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DJANGO", "PYTEST", "REALTIME"))
        }
        path = os.pathsep.join([str(self._entry_points), str(ROOT)])
        done = subprocess.run(
            command,
            cwd=self.directory,
            env={**kept, "PYTHONPATH": path, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Result(done.returncode, done.stdout)

    def pytest(self, *arguments: str, **env: str) -> Result:
        """Run pytest; every warning is an error."""
        options = (
            "-p",
            "no:cacheprovider",
            "-W",
            "error",
            "-q",
            "-o",
            "asyncio_default_fixture_loop_scope=function",
        )
        return self.run(sys.executable, "-m", "pytest", *options, *arguments, **env)
