"""Waiting for a row to become due: for PostgreSQL's NOTIFY, or for the time of the next look."""

from __future__ import annotations

import select
import threading
from typing import Any

from django.db import connections

from realtime.outbox.table import CHANNEL

POLL = 1.0
"""Seconds between two looks at the table."""


class Waiter:
    """Waits in the thread of one relay, which is also that of its connection to the database."""

    def __init__(self, using: str, stopping: threading.Event) -> None:
        self._using = using
        self._stopping = stopping
        self._listening: Any = None
        self._is_told = False

    def listen(self) -> None:
        """Listen on the connection that is open now, if it can. Raises `django.db.Error`."""
        connection = connections[self._using]
        if connection.vendor != "postgresql":
            return
        connection.ensure_connection()
        if connection.connection is not self._listening:
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {CHANNEL}")
            self._listening = connection.connection
            if hasattr(
                self._listening, "add_notify_handler"
            ):  # psycopg 3: also those that come with another answer
                self._listening.add_notify_handler(self._on_notify)

    def wait(self) -> None:
        """Return when a row may be due, after `POLL` at the latest, or when the relay is to stop."""
        if self._listening is None:
            self._stopping.wait(POLL)
        elif not self._is_told:
            self._wait_for_socket()
        self._is_told = False

    def _wait_for_socket(self) -> None:
        if getattr(self._listening, "notifies", None) and not callable(self._listening.notifies):
            self._listening.notifies.clear()  # psycopg2: came with another answer
            return
        try:
            select.select([self._listening.fileno()], [], [], POLL)
            if hasattr(self._listening, "poll"):  # psycopg2 reads them only here
                self._listening.poll()
        except Exception:
            # Each driver has errors of its own. The next query finds what is wrong with the connection.
            self._stopping.wait(POLL)

    def _on_notify(self, _: Any) -> None:
        self._is_told = True
