from __future__ import annotations

import json
import random
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM
from typing import Any

import psycopg
import pytest
from redis.exceptions import RedisError

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import QUIET, Stack, eventually, unique
from tests.postgresql import Cluster

GRACE, LEASE = "3", "3"


class Database:
    """The recorder's database, seen from another process."""

    def __init__(self, url: str) -> None:
        self.url = url

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(self._connect()) as connection:
            return connection.execute(sql).fetchall()

    def _connect(self) -> Any:
        if self.url.startswith("postgres"):
            return psycopg.connect(self.url)
        # Not read-only: the first reader after a recorder was killed has to roll its transaction back.
        return sqlite3.connect(self.path, timeout=60)

    @property
    def path(self) -> str:
        """The file of a SQLite database."""
        return self.url.removeprefix("sqlite:///").partition("?")[0]

    @property
    def recorded(self) -> int:
        return int(self.rows("SELECT count(*) FROM presence_presencetransition")[0][0])

    def has_more_than(self, count: int) -> bool:
        return self.recorded > count

    @property
    def entry_ids(self) -> list[str]:
        return [row[0] for row in self.rows("SELECT entry_id FROM presence_presencetransition ORDER BY id")]

    def status(self, user_id: str) -> str | None:
        found = dict(self.rows("SELECT user_id, status FROM presence_presencerecord"))
        return found.get(user_id)

    def changes(self, user_id: str) -> list[tuple[str, str]]:
        rows = self.rows("SELECT user_id, to_status, reason FROM presence_presencetransition ORDER BY id")
        return [(status, reason) for found, status, reason in rows if found == user_id]


System = tuple[Stack, Database]


@contextmanager
def recorded(directory: Path, redis_url: str, database_url: str) -> Iterator[System]:
    """A stack that records in this database."""
    env = {"REALTIME_GRACE_PERIOD": GRACE, "REALTIME_NODE_LEASE": LEASE, "DATABASE_URL": database_url}
    with Stack(directory, redis_url, **env) as stack:
        yield stack, Database(database_url)


def migrate(directory: Path, redis_url: str, database_url: str) -> None:
    with recorded(directory, redis_url, database_url) as (stack, _):
        stack.manage("migrate", "--verbosity", "0")


# A database is copied in less time than it is migrated.


@pytest.fixture(scope="module")
def cluster(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A PostgreSQL whose new databases are migrated, since they are copies of `template1`."""
    with Cluster() as cluster:
        migrate(tmp_path_factory.mktemp("postgresql"), redis_url, cluster.url("template1"))
        yield cluster


@pytest.fixture(scope="module")
def template(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database that is migrated."""
    directory = tmp_path_factory.mktemp("sqlite")
    migrate(directory, redis_url, f"sqlite:///{directory / 'template'}")
    return directory / "template"


@pytest.fixture
def sqlite(template: Path, tmp_path: Path) -> str:
    """The URL of a database of the test's own."""
    return f"sqlite:///{shutil.copy(template, tmp_path / 'db.sqlite3')}"


@pytest.fixture
def system(tmp_path: Path, redis_url: str, sqlite: str) -> Iterator[System]:
    with recorded(tmp_path, redis_url, sqlite) as system:
        yield system


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs_postgresql)])
def each_system(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[System]:
    """With each kind of database."""
    if request.param == "postgresql":
        url = request.getfixturevalue("cluster").create(unique("t"))
    else:
        url = request.getfixturevalue("sqlite")
    with recorded(tmp_path, redis_url, url) as system:
        yield system


@pytest.fixture
def system_of_its_own(tmp_path: Path, server: EmbeddedRedis, sqlite: str) -> Iterator[System]:
    with recorded(tmp_path, server.url, sqlite) as system:
        yield system


def transition(user_id: str, old: str = "offline", new: str = "online") -> str:
    return json.dumps(
        {
            "user_id": user_id,
            "namespace": "hub",
            "from": old,
            "to": new,
            "reason": "connect",
            "at": "2026-03-01T09:00:00.000Z",
            "name": "Ana",
            "groups": ["attendants", "sales"],
        }
    )


class Writer(threading.Thread):
    """Appends transitions, ten at a time."""

    def __init__(self, stack: Stack, count: int) -> None:
        super().__init__(daemon=True)
        self.stack = stack
        self.count = count

    def run(self) -> None:
        for number in range(self.count):
            user = f"u{number % 50}"
            self.stack.redis.xadd(self.stack.key("presence"), {"transition": transition(user, "offline")})
            if number % 10 == 0:
                time.sleep(0.01)

    def ids(self) -> list[str]:
        self.join()
        entries: Any = self.stack.redis.xrange(self.stack.key("presence"))
        return [entry_id for entry_id, _ in entries]


@pytest.mark.slow
async def test_everything_is_recorded_exactly_once_however_often_a_recorder_is_killed(each_system: System):
    stack, database = each_system
    writer = Writer(stack, 3000)
    writer.start()
    for _ in range(3):
        before = database.recorded
        recorder = stack.start("runrecorder", ready="")
        await eventually(partial(database.has_more_than, before))
        time.sleep(random.uniform(0, 0.2))
        recorder.stop(SIGKILL)
        if not writer.is_alive():  # keep it in the middle of something
            writer = Writer(stack, 500)
            writer.start()
    stack.start("runrecorder")
    expected = writer.ids()
    await eventually(lambda: database.recorded >= len(expected))
    assert database.entry_ids == expected
    assert len(database.rows("SELECT id FROM presence_presencerecord")) == 50


def test_recorder_ends_when_it_is_asked_to(system: System):
    stack, _ = system
    for how in (SIGTERM, SIGINT):
        assert stack.start("runrecorder").stop(how) == 0


def test_recorder_ends_when_it_is_asked_to_while_redis_hangs(
    system_of_its_own: System, server: EmbeddedRedis
):
    stack, _ = system_of_its_own
    recorder = stack.start("runrecorder")
    assert server.process is not None
    server.process.send_signal(SIGSTOP)
    try:
        time.sleep(QUIET)  # now it waits for an answer
        assert recorder.stop() == 0
    finally:
        server.process.send_signal(SIGCONT)


async def test_recorder_starts_before_redis_and_goes_on_after_its_restart(
    system_of_its_own: System, server: EmbeddedRedis
):
    stack, database = system_of_its_own
    server.stop()
    recorder = stack.start("runrecorder", ready="").wait_for("cannot record")
    server.start()
    recorder.wait_for()
    for user in ("first", "second"):
        await eventually(partial(_append, stack, transition(user)))
        await eventually(partial(database.status, user))
        server.stop(SIGKILL)
        server.start()


def _append(stack: Stack, text: str) -> bool:
    try:
        return bool(stack.redis.xadd(stack.key("presence"), {"transition": text}))
    except RedisError:
        return False


@pytest.mark.slow
async def test_recorder_waits_for_a_database_that_is_locked(tmp_path: Path, redis_url: str, sqlite: str):
    with recorded(tmp_path, redis_url, f"{sqlite}?timeout=1") as (stack, database):
        timeout = (
            "from django.conf import settings; print(settings.DATABASES['default']['OPTIONS']['timeout'])"
        )
        assert stack.run("-c", timeout, DJANGO_SETTINGS_MODULE="realtime.settings.web").stdout == "1\n"
        recorder = stack.start("runrecorder")
        with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            stack.redis.xadd(stack.key("presence"), {"transition": transition("7")})
            recorder.wait_for("cannot record")
            other.execute("ROLLBACK")
        await eventually(lambda: database.status("7") == "online")
        assert database.recorded == 1


@pytest.mark.needs_postgresql
async def test_recorder_waits_for_a_postgresql_that_restarts(
    tmp_path: Path, redis_url: str, cluster: Cluster
):
    with recorded(tmp_path, redis_url, cluster.create(unique("t"))) as (stack, database):
        recorder = stack.start("runrecorder")
        cluster.stop()
        stack.redis.xadd(stack.key("presence"), {"transition": transition("7")})
        recorder.wait_for("cannot record")
        cluster.start()
        await eventually(lambda: database.status("7") == "online")
        assert database.recorded == 1


async def test_stream_that_begins_anew_below_the_cursor_is_recorded_by_recorders_whose_commands_all_succeed(
    system: System,
):
    """As after a fail-over that no recorder notices, to a replica whose clock is behind."""
    stack, database = system
    recorders = [stack.start("runrecorder") for _ in range(2)]
    presence = stack.key("presence")
    stack.redis.xadd(presence, {"transition": transition("before")})
    await eventually(lambda: database.status("before"))
    for number in range(3):
        with stack.redis.pipeline() as pipe:
            pipe.delete(presence)
            for user in ("below", "further-below"):
                pipe.xadd(presence, {"transition": transition(f"{user}-{number}")}, id=f"{number + 1}-*")
            pipe.xadd(presence, {"transition": transition(f"above-{number}")})
            pipe.execute()
        for user in ("below", "further-below", "above"):
            await eventually(partial(database.status, f"{user}-{number}"))
    assert all(recorder.is_running for recorder in recorders)
    assert "cannot record" not in stack.logs
    assert database.recorded == 10


@pytest.mark.slow
async def test_recorder_that_is_suspended_in_the_middle_of_a_batch_loses_and_doubles_nothing(
    each_system: System,
):
    stack, database = each_system
    recorders = [stack.start("runrecorder") for _ in range(2)]
    writer = Writer(stack, 2000)
    writer.start()
    for number in range(4):
        before = database.recorded
        await eventually(partial(database.has_more_than, before))
        suspended = recorders[number % 2]
        suspended.signal(SIGSTOP)
        time.sleep(random.uniform(0, float(LEASE) + 1))
        suspended.signal(SIGCONT)
        if not writer.is_alive():
            writer = Writer(stack, 500)
            writer.start()
    expected = writer.ids()
    await eventually(lambda: database.recorded >= len(expected))
    assert database.entry_ids == expected


async def test_attendant_who_comes_and_goes_is_in_the_database(system: System):
    stack, database = system
    stack.start_all()
    stack.start("runrecorder")
    user = unique("u")
    async with stack.client("hub", user, groups=["sales"]) as attendant:
        await eventually(lambda: database.status(user) == "online")
        await attendant.call("presence:away")
        await eventually(lambda: database.status(user) == "away")
    await eventually(lambda: database.status(user) == "offline")
    assert database.changes(user) == [("online", "connect"), ("away", "chosen"), ("offline", "grace")]


@pytest.mark.slow
async def test_wiped_redis_leaves_no_ghost_online_and_no_user_who_is_there_flaps(system_of_its_own: System):
    stack, database = system_of_its_own
    stack.start("runbridge")
    dying = stack.start_sockets()
    for _ in range(2):
        stack.start("runrecorder")
    ghost = unique("u")
    async with stack.client("hub", ghost):
        await eventually(lambda: database.status(ghost) == "online")
        # Redis forgets everything, and the one process that could tell it again is gone.
        dying.stop(SIGKILL)
        stack.redis.flushall()
    stack.start_sockets()
    there = unique("u")
    async with stack.client("hub", there) as attendant:
        await eventually(lambda: database.status(there) == "online")
        stack.redis.flushall()
        await eventually(lambda: database.status(ghost) == "offline")
        await attendant.call("heartbeat")
        assert database.status(there) == "online"
    await eventually(lambda: database.status(there) == "offline")
    assert Counter(database.changes(ghost)) == {("online", "connect"): 1, ("offline", "reset"): 1}
    assert database.changes(there) == [("online", "connect"), ("offline", "grace")]
