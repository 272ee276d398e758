"""The relay as a process: its database, its signals, its numbers."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM

import pytest
import redis

from realtime.outbox.listening import POLL
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import ROOT, Process, Stack, free_port, unique
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


@pytest.fixture
def stack(tmp_path: Path, redis_url: str) -> Iterator[Backbone]:
    with sqlite_url() as url, backbone(tmp_path, redis_url, DATABASE_URL=url) as made:
        yield made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as made:
        yield made


@pytest.fixture
def on_postgresql(cluster: Cluster, tmp_path: Path, redis_url: str) -> Iterator[Backbone]:
    with backbone(tmp_path, redis_url, DATABASE_URL=cluster.create(unique("t"))) as made:
        yield made


def test_relays_send_what_the_requests_could_not_in_order(stack: Backbone):
    stack.publish(0, 60, REDIS_URL=CLOSED)
    assert stack.published() == {}
    relays = [stack.start("runoutbox") for _ in range(2)]
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
@pytest.mark.needs_postgresql
def test_large_backlog_is_sent_in_order_by_four_relays(on_postgresql: Backbone):
    on_postgresql.publish(0, 1500, REDIS_URL=CLOSED)
    for _ in range(4):
        on_postgresql.start("runoutbox", ready="")
    until(lambda: on_postgresql.published() == expected(1500))


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
def test_relay_outlives_a_database_that_restarts(on_postgresql: Backbone, cluster: Cluster):
    relay = on_postgresql.start("runoutbox")
    cluster.stop()
    relay.wait_for("outbox: the database is away, trying again")
    cluster.start()
    on_postgresql.publish(0, 20, REDIS_URL=CLOSED)
    until(lambda: on_postgresql.published() == expected(20))
    assert relay.stop(SIGTERM) == 0


@pytest.mark.needs_postgresql
def test_relay_begins_before_its_database(on_postgresql: Backbone, cluster: Cluster):
    cluster.stop()
    relay = on_postgresql.start("runoutbox", ready="outbox: the database is away, trying again")
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


PATIENT = """
import django
django.setup()
from django.core.management import call_command
from realtime.outbox import listening
listening.POLL = 600.0
call_command("runoutbox")
"""


@pytest.mark.needs_postgresql
def test_relay_is_told_by_postgresql_of_what_a_request_could_not_send(on_postgresql: Backbone):
    """It would look by itself only after ten minutes."""
    relay = on_postgresql.start("relay", "-c", PATIENT, DJANGO_SETTINGS_MODULE="realtime.settings.web")
    for first in (0, 3):
        on_postgresql.publish(first, 3, REDIS_URL=CLOSED)
        until(lambda first=first: on_postgresql.published() == expected(first + 3))  # type: ignore[misc]
    relay.stop(SIGKILL)  # SIGTERM would end it after its wait


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


def test_two_databases_commit_and_roll_back_each_its_own(stack: Backbone, tmp_path: Path):
    env = {
        "DJANGO_SETTINGS_MODULE": "tests.outbox.two",
        "OTHER_URL": f"sqlite:///{tmp_path / 'other.sqlite3'}",
    }
    stack.run("manage.py", "migrate", "-v0", "--database", "other", **env)
    stack.run("-c", TWO, **env, REALTIME_OUTBOX_WAIT="60")
    assert stack.published()[1] == [2, 3, 5]
    stack.run("-c", TWO, **env, REDIS_URL=CLOSED)
    databases = ("--database", "default", "--database", "other")
    stack.start("relay", str(ROOT / "manage.py"), "runoutbox", *databases, **env)
    until(lambda: len(stack.published()[1]) == 6)
    assert [number for number in stack.published()[1][3:] if number != 5] == [2, 3]
