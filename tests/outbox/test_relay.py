"""The relay as a process: its database, its signals, its numbers."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM

import pytest
import redis

from realtime.outbox.listening import POLL
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import ROOT, Process, Stack, free_port, python
from tests.outbox.conftest import CLOSED
from tests.outbox.reading import once, sqlite_url
from tests.postgresql import Cluster
from tests.servers import until

PUBLISH = """
import django
django.setup()
import sys
from django.conf import settings
from django.db import transaction
from realtime.publisher import publish
first, count = int(sys.argv[1]), int(sys.argv[2])
for number in range(first, first + count):
    with transaction.atomic():
        publish("thread:message", {"thread_id": number % 7, "message_id": number})
"""

SETTINGS = "tests.outbox.settings"


class Backbone(Stack):
    """A stack with a database; its backbone is a process of its own."""

    def start(self, name: str, *command: str, ready: str = "ready", **env: str) -> Process:
        settings = {"DJANGO_SETTINGS_MODULE": SETTINGS} if name == "runoutbox" else {}
        return super().start(name, *command, ready=ready, **{**settings, **env})

    def migrate(self) -> None:
        self.run("manage.py", "migrate", "-v0")

    def publish(self, first: int, count: int, **env: str) -> None:  # type: ignore[override]
        self.run("-c", PUBLISH, str(first), str(count), **env)

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        settings = {"DJANGO_SETTINGS_MODULE": SETTINGS, "LOG_LEVEL": "ERROR"}
        done = super().run(*command, **{**settings, **env})
        assert done.returncode == 0, done.stderr
        return done

    def published(self) -> dict[int, list[int]]:
        """The messages of each thread in the stream, in order and without those that were sent twice."""
        threads: dict[int, list[int]] = {}
        client = redis.Redis.from_url(self.env["REDIS_URL"])
        for message in once(client, self.key("stream")):
            threads.setdefault(message["data"]["thread_id"], []).append(message["data"]["message_id"])
        client.close()
        return threads


def expected(count: int) -> dict[int, list[int]]:
    return {thread: [*range(thread, count, 7)] for thread in range(min(count, 7))}


@contextmanager
def backbone(directory: Path, redis_url: str, **env: str) -> Iterator[Backbone]:
    with Backbone(directory, redis_url, **env) as stack:
        stack.migrate()
        yield stack


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs_postgresql)])
def stack(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[Backbone]:
    if request.param == "sqlite":
        with sqlite_url() as url, backbone(tmp_path, redis_url, DATABASE_URL=url) as made:
            yield made
    else:
        with Cluster() as cluster, backbone(tmp_path, redis_url, DATABASE_URL=cluster.url()) as made:
            yield made


def test_relays_send_what_the_requests_could_not_in_order(stack: Backbone):
    stack.publish(0, 60, REDIS_URL=CLOSED)
    assert stack.published() == {}
    relays = [stack.start("runoutbox") for _ in range(4)]
    stack.publish(60, 60)
    until(lambda: stack.published() == expected(120))
    for relay in relays:
        assert relay.stop(SIGTERM) == 0


def test_relay_that_was_suspended_goes_on(stack: Backbone):
    relay = stack.start("runoutbox")
    relay.signal(SIGSTOP)
    time.sleep(POLL * 2)
    relay.signal(SIGCONT)
    stack.publish(0, 7, REDIS_URL=CLOSED)
    until(lambda: stack.published() == expected(7))
    assert relay.stop(SIGTERM) == 0


@pytest.mark.slow
def test_large_backlog_is_sent_in_order_by_four_relays(stack: Backbone):
    count = 1500 if "postgres" in stack.env["DATABASE_URL"] else 500
    stack.publish(0, count, REDIS_URL=CLOSED)
    for _ in range(4):
        stack.start("runoutbox", ready="")
    until(lambda: stack.published() == expected(count))


def test_relay_waits_for_a_redis_that_is_away_and_says_so_once(stack: Backbone, tmp_path: Path):
    with EmbeddedRedis() as server:
        stack.env["REDIS_URL"] = server.url
        relay = stack.start("runoutbox")
        server.stop()
        stack.publish(0, 20)
        relay.wait_for("outbox: Redis is away, trying again")
        server.start()
        until(lambda: stack.published() == expected(20))
        relay.wait_for("outbox: sending again")
        assert relay.output.count("Redis is away") == 1


@pytest.mark.needs_postgresql
def test_relay_outlives_a_database_that_restarts(tmp_path: Path, redis_url: str):
    with Cluster() as cluster, backbone(tmp_path, redis_url, DATABASE_URL=cluster.url()) as stack:
        relay = stack.start("runoutbox")
        cluster.stop()
        relay.wait_for("outbox: the database is away, trying again")
        cluster.start()
        stack.publish(0, 20, REDIS_URL=CLOSED)
        until(lambda: stack.published() == expected(20))
        assert relay.stop(SIGTERM) == 0


@pytest.mark.needs_postgresql
def test_relay_begins_before_its_database(tmp_path: Path, redis_url: str):
    with Cluster() as cluster, backbone(tmp_path, redis_url, DATABASE_URL=cluster.url()) as stack:
        cluster.stop()
        relay = stack.start("runoutbox", ready="outbox: the database is away, trying again")
        cluster.start()
        relay.wait_for()


def test_numbers_are_shown(stack: Backbone):
    port = free_port()
    stack.publish(0, 5, REDIS_URL=CLOSED)
    relay = stack.start("runoutbox", str(ROOT / "manage.py"), "runoutbox", "--metrics-port", str(port))

    def text() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            return response.read().decode()

    until(lambda: 'realtime_outbox_sent_total{database="default"} 5.0' in text())
    until(lambda: 'realtime_outbox_backlog{database="default"} 0.0' in text())
    assert relay.is_running


# --- On the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["runoutbox"], "run `migrate` first"),
        (["runoutbox", "--database", "other"], "expected an alias of DATABASES (default), got 'other'"),
        (["runoutbox", "--metrics-port", "99999"], "--metrics-port must be between 0 and 65535"),
        (["pruneoutbox", "--older-than", "-1"], "--older-than must be between 0 and"),
        (["pruneoutbox", "--older-than", "nan"], "--older-than must be between 0 and"),
        (["pruneoutbox", "--older-than", "5"], "no such table"),
        (["pruneoutbox"], "--older-than"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], text: str, tmp_path: Path):
    env = {
        **os.environ,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}",
        "DJANGO_SETTINGS_MODULE": SETTINGS,
    }
    done = python("manage.py", *arguments, env=env)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_old_messages_are_pruned(tmp_path: Path, redis_url: str):
    with backbone(tmp_path, redis_url) as stack:
        stack.publish(0, 3, REDIS_URL=CLOSED)
        assert "default: 0 dropped" in stack.run("manage.py", "pruneoutbox", "--older-than", "3600").stdout
        threading.Event().wait(1.1)
        assert "default: 3 dropped" in stack.run("manage.py", "pruneoutbox", "--older-than", "1").stdout
        assert "default: 0 dropped" in stack.run("manage.py", "pruneoutbox", "--older-than", "0").stdout


PATIENT = """
import django
django.setup()
from django.core.management import call_command
from realtime.outbox import listening
listening.POLL = 600.0
call_command("runoutbox")
"""


@pytest.mark.needs_postgresql
def test_relay_is_told_by_postgresql_of_what_a_request_could_not_send(tmp_path: Path, redis_url: str):
    """It would look by itself only after ten minutes."""
    with Cluster() as cluster, backbone(tmp_path, redis_url, DATABASE_URL=cluster.url()) as stack:
        stack.start("relay", "-c", PATIENT, DJANGO_SETTINGS_MODULE="realtime.settings.web")
        for first in (0, 3):
            stack.publish(first, 3, REDIS_URL=CLOSED)
            until(lambda first=first: stack.published() == expected(first + 3))  # type: ignore[misc]


TWO = """
import django
django.setup()
import contextlib
from django.db import transaction
from realtime.publisher import publish
def say(number, using):
    publish("thread:message", {"thread_id": 1, "message_id": number}, using=using)
with transaction.atomic(using="other"):
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        say(1, "default")
        say(2, "other")
        raise ZeroDivisionError
    say(3, "other")
with contextlib.suppress(ZeroDivisionError), transaction.atomic(using="other"):
    with transaction.atomic():
        say(4, "other")
        say(5, "default")
    raise ZeroDivisionError
"""


@pytest.mark.parametrize("is_redis_there", [True, False])
def test_two_databases_commit_and_roll_back_each_its_own(
    is_redis_there: bool, tmp_path: Path, redis_url: str
):
    env = {
        "DJANGO_SETTINGS_MODULE": "tests.outbox.two",
        "OTHER_URL": f"sqlite:///{tmp_path / 'other.sqlite3'}",
    }
    with sqlite_url() as url, backbone(tmp_path, redis_url, DATABASE_URL=url) as stack:
        stack.run("manage.py", "migrate", "-v0", "--database", "other", **env)
        stack.run("-c", TWO, **env, **({} if is_redis_there else {"REDIS_URL": CLOSED}))
        databases = ("--database", "default", "--database", "other")
        if not is_redis_there:
            stack.start("relay", str(ROOT / "manage.py"), "runoutbox", *databases, **env)
        until(lambda: sorted(stack.published().get(1, [])) == [2, 3, 5])
        assert [number for number in stack.published()[1] if number != 5] == [2, 3]
