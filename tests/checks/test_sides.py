"""`manage.py check` in a team's own project: what concerns the process itself, and packages that are not ours."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import ROOT, python

PROJECT = """
import sys

sys.path.insert(0, {folder!r})
from django.conf import settings

settings.configure(INSTALLED_APPS={apps!r}, SECRET_KEY="a-secret-of-the-team-with-32-bytes-or-more", **{extra!r})
from django.core.management import execute_from_command_line

execute_from_command_line(["manage.py", *{command!r}])
"""
AUTH = ["django.contrib.contenttypes", "django.contrib.auth"]
SERVER = [*AUTH, "realtime", "realtime.server"]
ADMIN = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
]

WITH_ADMIN = {
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    "USE_TZ": True,
}


def manage(
    *command: str, apps: list[str], folder: Path = ROOT, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run a command of a project with these apps; its folder comes first on Python's path."""
    program = PROJECT.format(folder=str(folder), apps=apps, command=command, extra=settings)
    return python("-c", program, env={})


def ids(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in done.stderr, done.stderr
    return re.findall(r"realtime\.[EWI]\d+", done.stderr)


# --- Sides -------------------------------------------------------------------------------------------


WRONG_FOR_CONNECTIONS = {
    "AWAY_AFTER": 1000,
    "TRUSTED_PROXIES": ["proxy"],
    "HUB_THREAD_POLICY": "no.such.policy",
    "CLAIMS": "no.such.mapping",
    "PRESENCE_ROLES": ["janitor"],
}


def test_backbone_hears_nothing_of_keys_layers_origins_and_connections():
    done = manage("check", "--deploy", apps=["realtime"], DEBUG=False, REALTIME=WRONG_FOR_CONNECTIONS)
    assert ids(done) == []
    assert done.returncode == 0


def test_backbone_hears_of_its_connection_to_redis():
    done = manage("check", "--deploy", apps=["realtime"], REALTIME={"REDIS_URL": "redis://redis.internal"})
    assert ids(done) == ["realtime.W108", "realtime.I109"]


def test_backbone_hears_of_what_it_cannot_publish_with():
    wrong = {"REDIS_URL": "nonsense", "EVENTS": ["no.such.events"]}
    found = ids(manage("check", apps=["realtime"], REALTIME=wrong))
    assert sorted(found) == ["realtime.E004", "realtime.E010"]


def test_what_concerns_connections_is_said_where_they_are_served():
    found = ids(manage("check", apps=SERVER, REALTIME=WRONG_FOR_CONNECTIONS))
    assert sorted(found) == [f"realtime.{id}" for id in ("E002", "E005", "E011", "E017", "E020")]


def test_server_without_the_apps_that_simplejwt_needs_is_one_message():
    assert ids(manage("check", apps=["realtime", "realtime.server"])) == ["realtime.E032"]


def test_server_works_with_every_setting_left_out_and_hears_its_part_of_the_checklist():
    found = ids(manage("check", "--deploy", apps=SERVER))
    assert sorted(found) == [f"realtime.{id}" for id in ("I103", "I104", "W102", "W106", "W110")]


@pytest.mark.parametrize("command", ["runsockets", "runbridge"])
def test_command_of_the_server_runs_its_checks_without_the_app(command: str):
    done = manage(command, apps=[*AUTH, "realtime"], REALTIME={"TRUSTED_PROXIES": ["proxy"]})
    assert ids(done) == ["realtime.E011"]
    assert done.returncode == 1


def test_no_migration_is_missing_with_any_default_of_the_project(tmp_path: Path):
    done = manage(
        *("makemigrations", "--check"),
        apps=[*SERVER, "presence", "hub", "portal"],
        DEFAULT_AUTO_FIELD="django.db.models.SmallAutoField",  # that of no migration
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db")}},
        USE_TZ=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- Collisions --------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path):
    """Write apps of the team's own."""

    def write(*names: str) -> Path:
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("")
        return tmp_path

    return write


def test_backbone_may_have_apps_of_its_own_with_the_names_of_ours(own):
    names = ["hub", "portal"]
    assert ids(manage("check", apps=["realtime", *names], folder=own(*names))) == []


@pytest.mark.parametrize(
    ("names", "apps", "settings"),
    [
        (["hub", "portal", "presence"], SERVER, {}),
        (["presence"], ["realtime"], {"REALTIME": {"NAMESPACES": ["tests.ops.namespace.OPS"]}}),
        (["realtime"], ["presence"], {"USE_TZ": True}),
        (["realtime"], [*ADMIN, "presence"], WITH_ADMIN),
    ],
    ids=["server", "publisher", "presence", "admin"],
)
def test_package_in_the_place_of_ours_is_one_sentence_with_a_number(
    own, names: list[str], apps: list[str], settings: dict[str, Any]
):
    done = manage("check", apps=apps, folder=own(*names), **settings)
    assert ids(done) == ["realtime.E030"] * len(names)
    for name in names:
        sentence = rf"the package `{name}` is /\S+/{name}, not the one of realtime-sockets: "
        assert re.search(sentence, done.stderr)


@pytest.mark.parametrize(
    ("name", "command"), [("hub", ["runsockets"]), ("presence", ["publish", "queue:updated"])]
)
def test_command_that_needs_ours_says_so_and_exits_with_2(own, name: str, command: list[str]):
    done = manage(*command, apps=["realtime"], folder=own(name))
    assert done.returncode == 2
    assert re.fullmatch(
        rf"CommandError: the package `{name}` is /\S+/{name}, not the one of realtime-sockets: .+\n",
        done.stderr,
    )
