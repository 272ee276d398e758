"""A backbone or a relay is killed (`kill -9`) at every point between the INSERT of a row and its deletion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import redis

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import ROOT, unique
from tests.outbox.reading import once, sqlite_url
from tests.postgresql import Cluster


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs_postgresql)],
)
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "sqlite":
        with sqlite_url() as url:
            yield url
    else:
        with Cluster() as cluster:
            yield cluster.url()


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("who", ["backbone", "relay"])
def test_process_killed_at_any_point_loses_doubles_and_disorders_nothing(who: str, database_url: str):
    prefix = unique("t")
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        env = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "DATABASE_URL": database_url,
            "REDIS_URL": server.url,
            "REALTIME_PREFIX": prefix,
            "REALTIME_OUTBOX_WAIT": "0.2",
            "REALTIME_PUBLISH_TIMEOUT": "0.2",
        }
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=env, check=True)
        command = [sys.executable, "-m", "tests.outbox.dying", who]
        done = subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE)
        committed = set(json.loads(done.stdout))
        rooms: dict[str, list[int]] = {}
        for message in once(client, f"{prefix}:stream"):
            rooms.setdefault(str(message["data"]["thread_id"]), []).append(message["data"]["message_id"])
    last = max(committed)
    assert len(committed) > 10  # the transaction, and most steps after it
    assert rooms == {
        str(step): [*([1, 2] if step in committed else []), *([3] if step < last else [])]
        for step in range(1, last + 1)
    }
