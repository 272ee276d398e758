"""The mistakes of the commands, and old messages that are dropped."""

from __future__ import annotations

import os
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db.models import F

from realtime.outbox.models import OutboxMessage
from realtime.outbox.writing import breaker
from realtime.publisher import publish
from tests.e2e.harness import python


@pytest.mark.parametrize(
    ("command", "text"),
    [("runoutbox", "run `migrate` first"), ("pruneoutbox --older-than 5", "no such table")],
)
def test_missing_table_is_one_sentence_and_exit_code_2(command: str, text: str, tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'db.sqlite3'}"
    env = {**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "tests.outbox.settings"}
    done = python("manage.py", *command.split(), env=env)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("runoutbox --database other", r"expected an alias of DATABASES \(default\), got 'other'"),
        ("runoutbox --metrics-port 99999", "--metrics-port must be between 0 and 65535"),
        ("pruneoutbox --older-than -1", "--older-than must be between 0 and"),
        ("pruneoutbox --older-than nan", "--older-than must be between 0 and"),
    ],
)
def test_mistake_is_one_sentence(command: str, text: str):
    with pytest.raises(CommandError, match=text) as caught:
        call_command(*command.split())
    assert caught.value.returncode == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("realtime_redis")
def test_old_messages_are_pruned():
    breaker.trip()
    for number in range(3):
        publish("thread:message", {"thread_id": 42, "message_id": number})
    old = OutboxMessage.objects.order_by("pk")[:2]
    OutboxMessage.objects.filter(pk__in=[row.pk for row in old]).update(
        created_at=F("created_at") - timedelta(hours=2)
    )
    for seconds, dropped in ((10_000, 0), (3600, 2), (0, 1)):
        call_command("pruneoutbox", "--older-than", str(seconds), stdout=(out := StringIO()))
        assert out.getvalue() == f"default: {dropped} dropped\n"
