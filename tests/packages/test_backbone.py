"""The wheel in a team's own project, without extras."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.packages.backbone import Backbone, pip
from tests.packages.building import Built

pytestmark = pytest.mark.slow


def test_plain_installation_is_small(environment: Path):
    listed = "from importlib.metadata import distributions as d; print(*(each.name.lower() for each in d()))"
    names = subprocess.run([environment, "-c", listed], capture_output=True, text=True, check=True).stdout
    ours = {"asgiref", "django", "hiredis", "msgspec", "realtime-sockets", "redis", "sqlparse"}
    assert {*names.split()} == ours | (
        {"typing_extensions"} & {*names.split()}  # Python 3.11's, on some versions of redis-py
    )


PUBLISHING = """
from django.db import transaction
from realtime.publisher import publish
publish("thread:message", {"thread_id": 42, "message_id": 7})
with transaction.atomic():
    publish("chat:accepted", {"thread_id": 42, "attendant_id": 7, "user_id": 9})
    publish("queue:taken", {"item_id": 5})
"""


def test_backbone_publishes_without_a_setting(backbone: Backbone):
    assert "no issues" in backbone.succeed("check")
    backbone.succeed("shell", "-c", PUBLISHING)
    entries = redis.Redis.from_url(backbone.redis_url).xlen(f"{backbone.prefix}:stream")
    assert entries == 3


def test_backbone_hears_nothing_of_other_sides(backbone: Backbone):
    done = backbone.manage("check", "--deploy", apps="realtime presence")
    assert done.returncode == 0
    assert "security.W" in done.stderr
    assert "realtime." not in done.stderr


PAGES = """
from django.contrib.auth.models import User
from django.test import Client
from django.test.utils import setup_test_environment
from django.urls import reverse

setup_test_environment()
client = Client()
client.force_login(User.objects.create_superuser("ana"))
names = ("presencerecord", "presencetransition", "live", "availability", "deadletter")
paths = [reverse(f"admin:presence_{name}_changelist") for name in names]
for path in ("/admin/", *paths, paths[2] + "rooms/", paths[2] + "instances/"):
    answer = client.get(path, follow=True)
    print(path, answer.status_code, len(answer.context["messages"]))
"""


def test_presence_works_in_a_project_without_other_settings(backbone: Backbone):
    assert "No changes" in backbone.succeed("makemigrations", "--check", apps="presence")
    backbone.succeed("migrate", "--verbosity", "0", apps="presence")
    printed = backbone.succeed("shell", "-c", PAGES, apps="presence").splitlines()
    pages = [line.split() for line in printed if line.startswith("/admin/")]
    assert len(pages) == 8
    assert {(status, messages) for _, status, messages in pages} == {("200", "0")}


PINNED = ("uvicorn==0.30.6", "websockets==12.0", "redis==5.2.1", "celery==5.5.3", "kombu[redis]==5.5.4")
"""What a project may have pinned for itself."""


def test_project_keeps_the_versions_that_it_has_pinned(environment: Path, built: Built):
    """With all extras at once, and so with any of them."""
    command = [*pip(environment), "install", "--quiet", "--dry-run", "--ignore-installed"]
    done = subprocess.run(
        [*command, f"{built.wheel}[asgi,daphne,testing,otel]", *PINNED],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_application_without_its_extra_is_one_sentence(backbone: Backbone):
    for name in ("application", "with_sockets(None)"):
        done = backbone.manage("shell", "-c", f"from realtime import asgi; asgi.{name}")
        last = done.stderr.splitlines()[-1]
        assert "ImproperlyConfigured: realtime.asgi needs pip install 'realtime-sockets[asgi]'" in last


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("runsockets", "server"),
        ("runbridge", "asgi"),
        ("issuetoken --user 7 --role attendant", "asgi"),
        ("runweb", "web"),
    ],
    ids=str,
)
def test_command_without_its_extra_says_how_to_install_it(backbone: Backbone, command: str, extra: str):
    done = backbone.manage(*command.split())
    assert done.returncode == 2
    expected = (
        f"CommandError: {command.split()[0]} needs pip install 'realtime-sockets[{extra}]'; not installed: "
    )
    assert re.fullmatch(re.escape(expected) + r".+\n", done.stderr)


def test_app_without_its_extra_is_one_message(backbone: Backbone):
    done = backbone.manage("check", apps="realtime realtime.server")
    assert re.findall(r"realtime\.[EWI]\d+", done.stderr) == ["realtime.E031"]
    assert "pip install 'realtime-sockets[asgi]'" in done.stderr


@pytest.fixture
def other(environment: Path) -> Iterator[str]:
    """Another distribution, which has installed a file into our package."""
    [site] = environment.parents[1].glob("lib/python*/site-packages")
    metadata = site / "other_sockets-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-sockets\nVersion: 1.0\n")
    (metadata / "RECORD").write_text("realtime/__init__.py,,\nrealtime/channel.py,,\n")
    (site / "realtime" / "channel.py").write_text("")
    yield "other-sockets"
    shutil.rmtree(metadata)
    (site / "realtime" / "channel.py").unlink()


def test_distribution_that_wrote_into_our_package_is_named(backbone: Backbone, other: str):
    done = backbone.manage("check")
    assert re.findall(r"realtime\.[EWI]\d+", done.stderr) == ["realtime.E030"]
    assert f"the distribution '{other}' has a package `realtime`, too" in done.stderr
    assert backbone.manage("publish", "queue:updated").returncode == 2
