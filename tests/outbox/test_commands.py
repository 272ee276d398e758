"""The mistakes of the commands, and old messages that are dropped."""

from __future__ import annotations

import os
from datetime import timedelta
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.db.models import F

from realtime.outbox import table
from realtime.outbox.models import OutboxMessage
from tests.e2e.harness import python
from tests.outbox.conftest import leave, take_first, waiting


def test_missing_table_is_one_sentence_and_exit_code_2(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'db.sqlite3'}"
    env = {**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "tests.outbox.settings"}
    done = python("manage.py", "runoutbox", env=env)
    assert done.returncode == 2
    assert "run `migrate` first" in done.stderr
    assert "Traceback" not in done.stderr


def test_database_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table, "older_than", Mock(side_effect=OperationalError("it is gone")))
    with pytest.raises(CommandError, match=r"^default: it is gone$") as caught:
        call_command("pruneoutbox", "--older-than", "5")
    assert caught.value.returncode == 2


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
    for number in range(3):
        leave(number)
    old = OutboxMessage.objects.order_by("pk")[:2]
    OutboxMessage.objects.filter(pk__in=[row.pk for row in old]).update(
        created_at=F("created_at") - timedelta(hours=2)
    )
    for seconds, dropped in ((10_000, 0), (3600, 2), (0, 1)):
        call_command("pruneoutbox", "--older-than", str(seconds), stdout=(out := StringIO()))
        assert out.getvalue() == f"default: {dropped} dropped\n"


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("realtime_redis")
def test_message_that_is_being_sent_is_not_pruned():
    for number in range(2):
        leave(number)
    take_first()
    call_command("pruneoutbox", "--older-than", "0", stdout=(out := StringIO()))
    assert (out.getvalue(), waiting()) == ("default: 1 dropped\n", 1)
