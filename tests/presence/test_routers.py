"""The recorder of a backbone with several databases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from django.core.management import call_command
from django.db import OperationalError, connections

from presence.models import PresenceRecord, PresenceTransition, StreamCursor
from presence.recorder import history
from presence.recorder.recorder import Recorder
from tests.presence.recording import append

pytestmark = [
    pytest.mark.django_db(databases=["default", "other"]),
    pytest.mark.usefixtures("realtime_redis"),
]


class Routed:
    """Presence is written into one database, and read from another, whose replication is behind for ever."""

    def __init__(self, written: str, read: str) -> None:
        self.written, self.read = written, read

    def db_for_write(self, model: Any, **_: Any) -> str | None:
        return self.written if model._meta.app_label == "presence" else None

    def db_for_read(self, model: Any, **_: Any) -> str | None:
        return self.read if model._meta.app_label == "presence" else None


@pytest.fixture(scope="module", autouse=True)
def other(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """A second database, with the tables of presence."""
    more = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "OPTIONS": {}}
    connections.databases["other"] = {**connections.databases["default"], **more}
    with django_db_blocker.unblock():
        call_command("migrate", "presence", database="other", verbosity=0)
    yield
    with django_db_blocker.unblock():
        connections["other"].close()
    del connections["other"], connections.databases["other"]


def test_rows_and_cursor_are_one_transaction_of_the_database_that_routers_choose(
    settings, other, monkeypatch
):
    settings.DATABASE_ROUTERS = [Routed("other", "other")]
    append()
    recorder = Recorder()
    write = history.write

    monkeypatch.setattr(history, "write", Mock(side_effect=OperationalError("disk full")))
    with pytest.raises(OperationalError):
        recorder.step()
    assert StreamCursor.objects.using("other").get().entry_id == "0-0"
    assert not PresenceTransition.objects.using("other").exists()
    monkeypatch.setattr(history, "write", write)
    recorder.step()
    assert PresenceRecord.objects.using("other").get().status == "online"


def test_recorder_asks_no_replica_what_it_has_written(settings):
    settings.DATABASE_ROUTERS = [Routed("default", "other")]
    recorder = Recorder()
    for old, new in (("offline", "online"), ("online", "away"), ("away", "offline")):
        append("7", old, new)
        recorder.step()
    assert PresenceRecord.objects.using("default").get().status == "offline"
    assert PresenceTransition.objects.using("default").count() == 3
