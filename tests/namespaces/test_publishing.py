"""A backbone publishes the events of the shipped namespaces with few packages, and beside apps of those names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis

from realtime.protocol.catalogue import catalogue
from tests.e2e.harness import python

EXTRAS = (
    *("channels", "channels_redis", "daphne", "uvicorn", "httptools", "uvloop", "websockets"),
    *("prometheus_client", "opentelemetry", "pythonjsonlogger"),
    *("jwt", "cryptography", "rest_framework", "rest_framework_simplejwt"),
)
"""The packages that only other processes need."""

EVENTS: dict[str, dict[str, object]] = {
    "queue:new": {"item_id": 1},
    "queue:taken": {"item_id": 1, "group": "sales"},
    "queue:updated": {},
    "user:notification": {"user_id": 7},
    "user:disconnect": {"namespace": "portal", "user_id": 9},
    "room:grant": {"namespace": "portal", "user_id": 9, "room": "thread:42"},
    "room:revoke": {"namespace": "portal", "user_id": 9, "room": "thread:42"},
    "room:expel": {"namespace": "hub", "user_id": 7, "room": "thread:42"},
    "token:revoke": {"jti": "x", "exp": 1},
    "instance:drain": {"instance": "x"},
    "presence:set": {"user_id": 7, "status": "away"},
    "chat:accepted": {"thread_id": 42, "attendant_id": 7, "user_id": 9},
    "chat:ended": {"thread_id": 42},
    "thread:message": {"thread_id": 42, "message_id": 1},
    "thread:expel": {"thread_id": 42, "user_id": 7},
    "thread:grant": {"thread_id": 42, "user_id": 9},
    "thread:revoke": {"thread_id": 42, "user_id": 9},
}
"""Every event that a backbone may publish, with data."""

BACKBONE = f"""
import importlib.util, json, sys

def is_extra(name):
    return name.partition(".")[0] in {set(EXTRAS)}

class WithoutExtras:
    def find_spec(self, name, path=None, target=None):
        if is_extra(name):
            raise ModuleNotFoundError(name, name=name)

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if is_extra(name) else find_spec(name, *rest)
sys.meta_path.insert(0, WithoutExtras())
sys.path.insert(0, sys.argv[1])

from django.conf import settings
settings.configure(INSTALLED_APPS=["realtime"])
import django
django.setup()
from django.core.management import call_command
call_command("check")
call_command("check", deploy=True, tags=["realtime"], fail_level="INFO")

from realtime.publisher import publish
for event, data in json.loads(sys.argv[2]).items():
    publish(event, data)
print(json.dumps([*sys.modules]))
"""


def test_every_event_of_the_bus_is_tried():
    found = catalogue()
    assert {*EVENTS} == {name for name, event in found.server.items() if event.bus} | {*found.control}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A team's own apps, which come before ours."""
    for name in ("hub", "portal"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            "raise AssertionError('the team’s own app was imported')"
        )
    return tmp_path


def test_backbone_publishes_all_events_without_extras_and_without_the_apps(
    project: Path, redis_url: str, tmp_path: Path
):
    env = {"REDIS_URL": redis_url, "REALTIME_PREFIX": "light"}
    done = python("-c", BACKBONE, project, json.dumps(EVENTS), env=env)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not loaded & {"hub", "portal", *EXTRAS}
    entries = redis.Redis.from_url(redis_url).xrange("light:stream")
    assert [json.loads(fields[b"message"])["event"] for _, fields in entries] == [*EVENTS]
