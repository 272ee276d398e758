"""`manage.py check` in a team's own project: what concerns the process itself, and packages that are not ours."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

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


def test_backbone_hears_nothing_of_keys_layers_and_origins():
    done = manage("check", "--deploy", apps=["realtime"], DEBUG=False)
    assert ids(done) == []
    assert done.returncode == 0


def test_backbone_hears_of_its_connection_to_redis():
    done = manage("check", "--deploy", apps=["realtime"], REALTIME={"REDIS_URL": "redis://redis.internal"})
    assert ids(done) == ["realtime.W108", "realtime.I109"]


@pytest.mark.parametrize(
    ("realtime", "id"),
    [
        ("x", "E001"),
        ({"GRACE_PERIOD": "soon"}, "E001"),
        ({"REDIS_URL": "nonsense"}, "E010"),
        ({"NAMESPACES": ["no.such.NAMESPACE"]}, "E018"),
        ({"EVENTS": ["no.such.events"]}, "E004"),
    ],
    ids=repr,
)
def test_backbone_hears_of_what_it_cannot_publish_with(realtime: object, id: str):
    assert ids(manage("check", apps=["realtime"], REALTIME=realtime)) == [f"realtime.{id}"]


WRONG_FOR_CONNECTIONS = {
    "AWAY_AFTER": 1000,
    "TRUSTED_PROXIES": ["proxy"],
    "HUB_THREAD_POLICY": "no.such.policy",
    "CLAIMS": "no.such.mapping",
    "PRESENCE_ROLES": ["janitor"],
}


def test_what_concerns_connections_is_said_where_they_are_served():
    assert ids(manage("check", apps=["realtime"], REALTIME=WRONG_FOR_CONNECTIONS)) == []
    found = ids(manage("check", apps=SERVER, REALTIME=WRONG_FOR_CONNECTIONS))
    assert sorted(found) == [f"realtime.{id}" for id in ("E002", "E005", "E011", "E017", "E020")]


def test_server_works_with_every_setting_left_out():
    assert ids(manage("check", apps=SERVER)) == []


def test_server_without_the_apps_that_simplejwt_needs_is_one_message():
    assert ids(manage("check", apps=["realtime", "realtime.server"])) == ["realtime.E032"]


def test_server_hears_its_part_of_the_checklist():
    found = ids(manage("check", "--deploy", apps=SERVER))
    assert sorted(found) == [f"realtime.{id}" for id in ("I103", "I104", "W102", "W106", "W110")]


@pytest.mark.parametrize("command", ["runsockets", "runbridge"])
def test_command_of_the_server_runs_its_checks_without_the_app(command: str):
    done = manage(command, apps=[*AUTH, "realtime"], REALTIME={"TRUSTED_PROXIES": ["proxy"]})
    assert ids(done) == ["realtime.E011"]
    assert done.returncode == 1


@pytest.mark.parametrize("field", ["AutoField", "BigAutoField", "SmallAutoField"])
def test_no_migration_is_missing_with_any_default_of_the_project(field: str, tmp_path: Path):
    done = manage(
        *("makemigrations", "--check"),
        apps=[*SERVER, "presence", "hub", "portal"],
        DEFAULT_AUTO_FIELD=f"django.db.models.{field}",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db")}},
        USE_TZ=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- Collisions --------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path):
    """Write an app of the team's own."""

    def write(name: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        return tmp_path

    return write


@pytest.mark.parametrize("name", ["hub", "portal"])
def test_backbone_may_have_apps_of_its_own_with_the_names_of_ours(own, name: str):
    assert ids(manage("check", apps=["realtime", name], folder=own(name))) == []


@pytest.mark.parametrize(
    ("name", "apps"),
    [
        ("hub", SERVER),
        ("portal", SERVER),
        ("presence", ["realtime"]),
        ("presence", SERVER),
        ("realtime", ["presence"]),
        ("realtime", [*ADMIN, "presence"]),
    ],
    ids=str,
)
def test_package_in_the_place_of_ours_is_one_sentence_with_a_number(own, name: str, apps: list[str]):
    done = manage("check", apps=apps, folder=own(name), **WITH_ADMIN if "presence" in apps else {})
    assert ids(done) == ["realtime.E030"]
    assert re.search(rf"the package `{name}` is /\S+/{name}, not the one of realtime-sockets: ", done.stderr)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("hub", ["runsockets"]),
        ("portal", ["runbridge"]),
        ("presence", ["publish", "queue:updated"]),
        ("presence", ["runsockets"]),
    ],
    ids=str,
)
def test_command_that_needs_ours_says_so_and_exits_with_2(own, name: str, command: list[str]):
    done = manage(*command, apps=["realtime"], folder=own(name))
    assert done.returncode == 2
    assert re.fullmatch(
        rf"CommandError: the package `{name}` is /\S+/{name}, not the one of realtime-sockets: .+\n",
        done.stderr,
    )


def test_publisher_needs_presence_whatever_the_namespaces_are(own):
    own_namespaces = {"NAMESPACES": ["tests.ops.namespace.OPS"]}
    done = manage("check", apps=["realtime"], folder=own("presence"), REALTIME=own_namespaces)
    assert ids(done) == ["realtime.E030"]
