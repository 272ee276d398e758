"""What only PostgreSQL can show: locks of hung processes, and levels of isolation."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.outbox.conftest import CLOSED
from tests.outbox.test_relay import Backbone, backbone
from tests.postgresql import Cluster
from tests.servers import until

pytestmark = pytest.mark.needs_postgresql
ROOMS = """
import django
django.setup()
import sys
from django.db import transaction
from realtime.publisher import publish
with transaction.atomic():
    for number in range(int(sys.argv[2])):
        publish("thread:message", {"thread_id": sys.argv[1], "message_id": number})
"""
LEVELS = """
import django
django.setup()
import json
from django.db import connection
from realtime.outbox import table
connection.ensure_connection()
connection.connection.execute("SET default_transaction_isolation = 'serializable'")
levels = []
def level():
    with connection.cursor() as cursor:
        cursor.execute("SHOW transaction_isolation")
        levels.append(cursor.fetchone()[0])
level()
with table.locked("default", [1]):
    level()
print(json.dumps(levels))
"""

STATEMENTS = """
import django
django.setup()
import json
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from realtime.publisher import publish
with CaptureQueriesContext(connection) as captured:
    with transaction.atomic():
        publish("thread:message", {"thread_id": 1, "message_id": 1})
print(json.dumps([query["sql"].split()[0] for query in captured]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as made:
        yield made


@pytest.fixture(scope="module")
def stack(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Backbone]:
    with backbone(tmp_path_factory.mktemp("backbone"), redis_url, DATABASE_URL=cluster.url()) as made:
        yield made


def test_lock_of_a_hung_process_stops_its_room_only(stack: Backbone, cluster: Cluster):
    """More rows of the room than are sent at once lie before the message of another one."""
    stack.run("-c", ROOMS, "42", "700", REDIS_URL=CLOSED)
    stack.run("-c", ROOMS, "43", "1", REDIS_URL=CLOSED)
    with cluster.connect() as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM realtime_outbox ORDER BY id LIMIT 1 FOR UPDATE")
        stack.start("runoutbox")
        until(lambda: "43" in stack.published())
        assert "42" not in stack.published()
        connection.execute("ROLLBACK")
    until(lambda: stack.published().get("42") == [*range(700)])


def test_senders_lock_rows_at_a_level_at_which_others_may_delete_them(stack: Backbone):
    assert json.loads(stack.run("-c", LEVELS).stdout) == ["serializable", "read committed"]


def test_message_of_a_request_costs_three_statements_after_its_commit(stack: Backbone):
    expected = ["BEGIN", "INSERT", "COMMIT", "SELECT", "DELETE", "SELECT"]
    assert json.loads(stack.run("-c", STATEMENTS).stdout) == expected
