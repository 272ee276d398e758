"""Nothing near a socket touches the database: not by import, not by a query, not in a review."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.e2e.harness import ROOT, python

SOCKET_SIDE = [
    "realtime.asgi",
    "realtime.bridge.bridge",
    "realtime.server.endpoints",
    "realtime.bridge.control_events",
    "realtime.survey.messages",
    "realtime.server.uvicorn_server",
    "realtime.management.commands.runsockets",
    "realtime.management.commands.runbridge",
    "hub.consumers",
    "realtime.namespaces.hub_events",
    "hub.policy",
    "realtime.namespaces.hub",
    "realtime.namespaces.portal_events",
    "realtime.namespaces.portal",
    "portal.policy",
    "presence.events",
    "presence.tracker",
    "presence.store",
    "presence.sweeper",
]

WEB_SIDE = [
    "presence.admin.records",
    "presence.admin.live",
    "presence.models",
    "presence.recorder.recorder",
    "realtime.survey.ask",
    "realtime.publisher",
    "realtime.web.token_claims",
    "realtime.web.urls",
    "channels.auth",
    "channels.sessions",
    "django.contrib.admin",
    "django.contrib.sessions",
    "django.contrib.messages",
    "rest_framework.views",
    "django.db.backends.sqlite3",
    "django.db.backends.postgresql",
]


def on_the_socket_side(program: str) -> str:
    """What a process with the settings of the socket server prints."""
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("COV")},
        "DJANGO_SETTINGS_MODULE": "realtime.settings.sockets",
        "DEBUG": "1",
    }
    env.pop("DATABASE_URL", None)
    result = python("-W", "error", "-c", program, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout


# --- Imports -----------------------------------------------------------------------------------------


def test_socket_side_imports_nothing_of_the_web_side():
    loaded = json.loads(
        on_the_socket_side(
            "import importlib, json, sys\n"
            "from realtime.asgi import application\n"
            "from realtime.auth.issuing import issue\n"
            "from realtime.auth.verification import verify\n"
            "from realtime.protocol.catalogue import catalogue\n"
            f"for name in {SOCKET_SIDE}: importlib.import_module(name)\n"
            "catalogue()\n"
            "assert verify(issue(user_id='7', role='attendant')).user_id == '7'\n"
            "print(json.dumps(sorted(sys.modules)))"
        )
    )
    assert set(SOCKET_SIDE) <= set(loaded)
    assert not set(WEB_SIDE) & set(loaded)


# --- Queries -----------------------------------------------------------------------------------------

QUERIES = [
    "from django.contrib.auth.models import User; User.objects.first()",
    "from django.contrib.contenttypes.models import ContentType; ContentType.objects.count()",
    "from django.db import connection; connection.cursor()",
]


def test_socket_side_has_no_database_and_a_query_there_fails_loudly():
    said = on_the_socket_side(
        "from realtime.asgi import application\n"
        "from django.core.exceptions import ImproperlyConfigured\n"
        "from django.db import connections\n"
        "print([each.settings_dict['ENGINE'] for each in connections.all()])\n"
        f"for query in {QUERIES}:\n"
        "    try:\n"
        "        exec(query)\n"
        "    except ImproperlyConfigured:\n"
        "        print('refused')"
    )
    assert said.splitlines() == ["['django.db.backends.dummy']", *["refused"] * len(QUERIES)]


# --- Reviews -----------------------------------------------------------------------------------------

IMPORTS = """
from django.db import models
from django.db.models import F
import django.db
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from channels.db import database_sync_to_async
from channels.auth import AuthMiddlewareStack
from channels.sessions import SessionMiddlewareStack
def late():
    from django.db import connection
"""


@pytest.mark.parametrize(
    ("path", "banned"),
    [
        *((path, 9) for path in ("realtime/x.py", "hub/x.py", "portal/x.py", "presence/store.py")),
        *(
            (path, 0)
            for path in ("presence/models.py", "presence/recorder/recorder.py", "realtime/publisher.py")
        ),
    ],
)
def test_linter_refuses_imports_of_the_database_near_a_socket(path: str, banned: int):
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"]
    result = subprocess.run(
        [*command, "--stdin-filename", path, "-"],
        cwd=ROOT,
        input=IMPORTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.count("TID251") == banned
