"""The relay: sends what no request has sent. Any number of them may run at once."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from django.db import Error as DatabaseError
from django.db import connections
from redis.exceptions import RedisError

from realtime.conf import conf
from realtime.outbox import table
from realtime.outbox.listening import POLL, Waiter
from realtime.outbox.refused import RefusedRows
from realtime.outbox.sending import BATCH_ROWS, PAGES, Sent, send, sender
from realtime.outbox.table import Waiting
from realtime.redis.bounded import now
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

FIRST_BACKOFF, LONGEST_BACKOFF = 0.05, 5.0
"""Seconds: pauses while Redis or the database is away. They double, and vary: relays should not meet again."""
REDIS_AWAY = "outbox: Redis is away, trying again"
DATABASE_AWAY = "outbox: the database is away, trying again"
PROGRESS = 10.0
"""Seconds between two log lines about a long backlog."""
STOP_SECONDS = 15.0
"""A relay that has not ended after this time is left behind: its rows stay for others."""
MEASURE = 5.0
"""Seconds between two measurements of the backlog."""


class NoTable(Exception):
    """The table is not there; the text says what to do."""


class Numbers:
    """What a relay counts and measures. `realtime.outbox.metrics` also shows it."""

    def __init__(self) -> None:
        self.backlog = 0
        self.sent = 0

    def on_sent(self, rows: int) -> None:
        """This many rows were sent."""
        self.sent += rows

    def on_failure(self) -> None:
        """An attempt has failed."""

    def on_backlog(self, rows: int, age: float) -> None:
        """This many rows are in the table; the oldest was written `age` seconds ago."""
        self.backlog = rows


class Relay:
    """The relay of one database. It runs in a thread of its own, so that no database holds up another one."""

    def __init__(self, using: str, stopping: threading.Event, numbers: Numbers | None = None) -> None:
        self.using = using
        self.numbers = numbers or Numbers()
        self._stopping = stopping
        self._waiter = Waiter(using, stopping)
        self._most = BATCH_ROWS
        self._refused = RefusedRows(using)
        self._ripe: int | None = None
        self._trouble: str | None = None
        self._pause = FIRST_BACKOFF
        self._caught_up = _Progress(using)
        self._measure_at = 0.0

    def run(self, ready: Callable[[], None]) -> None:
        """Send until `stopping` is set; calls `ready` once the database has answered.

        Raises `NoTable` when the table is missing at the start.
        """
        try:
            while not self._stopping.is_set() and not self._attempt(self._begin):
                pass
            if not self._stopping.is_set():
                ready()
            while not self._stopping.is_set():
                self._attempt(self._step)
        finally:
            connections[self.using].close()

    def _begin(self) -> None:
        if not table.exists(self.using):
            raise NoTable(f"the database {self.using!r} has no table of the outbox: run `migrate` first")

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Whether the work succeeded. If not, it pauses, longer each time; the first failure is logged."""
        try:
            work()
        except (RedisError, DatabaseError) as error:
            self._on_failure(error)
            return False
        except NoTable:
            raise
        except Exception:
            logger.exception("outbox: an attempt failed", extra={"database": self.using})
            self._rest(LONGEST_BACKOFF)
            return False
        return True

    def _on_failure(self, error: Exception) -> None:
        self.numbers.on_failure()
        is_redis = isinstance(error, RedisError)
        trouble = REDIS_AWAY if is_redis else DATABASE_AWAY
        if trouble != self._trouble:
            logger.warning(trouble, extra={"database": self.using, "error": spelled(error)})
            self._trouble = trouble
        if not is_redis:
            connections[self.using].close()
        self._rest(LONGEST_BACKOFF)

    def _rest(self, longest: float) -> None:
        self._stopping.wait(self._pause * random.uniform(0.5, 1.0))  # noqa: S311
        self._pause = min(self._pause * 2, longest)

    def _step(self) -> None:
        self._waiter.listen()
        sent = self._send()
        self.numbers.on_sent(len(sent.ids))
        self._most = min(self._most + len(sent.ids), BATCH_ROWS)
        self._measure(is_idle=not sent.ids)
        if sent.is_waiting:
            self._rest(POLL)
            return
        if sent.ids or not self._refused:
            self._end_trouble()
        if not sent.ids:
            self._waiter.wait()

    def _send(self) -> Sent:
        """Send what is due without what Redis has refused, or, in turn, one of these, when its time has come."""
        self._ripe = self._refused.ripe() if self._ripe is None else None
        by, until = sender(self.using), now() + conf().publish_timeout
        try:
            sent = send(by, self._is_wanted, until, self._most if self._ripe is None else 1, PAGES)
        except RedisError as error:
            self._most = max(min(self._most, len(by.tried)) // 2, 1)  # a narrow link may take a smaller batch
            self._refused.on_failure(by.tried, spelled(error))
            raise
        self._refused.on_sent(sent.ids)
        if self._ripe is not None:
            self._refused.forget(self._ripe)  # sent, or gone
        return sent

    def _is_wanted(self, row: Waiting) -> bool:
        if self._ripe is not None:
            return row.is_due and row.id == self._ripe
        return row.is_due and row.id not in self._refused

    def _end_trouble(self) -> None:
        self._pause = FIRST_BACKOFF
        if self._trouble is not None:
            logger.info("outbox: sending again", extra={"database": self.using})
            self._trouble = None

    def _measure(self, *, is_idle: bool) -> None:
        if time.monotonic() >= self._measure_at or (is_idle and self.numbers.backlog):
            self.numbers.on_backlog(*table.backlog(self.using))
            self._measure_at = time.monotonic() + MEASURE
        self._caught_up.note(self.numbers)


class _Progress:
    """Log lines about a backlog that takes long."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._since: float | None = None
        self._said_at = 0.0
        self._sent_before = 0

    def note(self, numbers: Numbers) -> None:
        current = time.monotonic()
        if numbers.backlog <= BATCH_ROWS:
            if self._since is not None and self._said_at > self._since:
                self._say("outbox: caught up", numbers)
            self._since, self._sent_before = None, numbers.sent
        elif self._since is None:
            self._since = self._said_at = current
        elif current >= self._said_at + PROGRESS:
            self._said_at = current
            self._say("outbox: backlog", numbers)

    def _say(self, line: str, numbers: Numbers) -> None:
        facts = {"sent": numbers.sent - self._sent_before, "left": numbers.backlog}
        logger.info(line, extra={"database": self._using, **facts})


class Relays:
    """Relays, each in a thread, which end together."""

    def __init__(self, relays: Sequence[Relay], stopping: threading.Event, ready: Callable[[], None]) -> None:
        self._missing = len(relays)
        self._lock = threading.Lock()
        self._stopping = stopping
        self._ready = ready
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=[each], name=f"outbox {each.using}", daemon=True)
            for each in relays
        ]

    def start(self) -> None:
        """Start all of them; `ready` is called once every database has answered."""
        for thread in self._threads:
            thread.start()

    @property
    def are_running(self) -> bool:
        """Whether none of them has ended."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self, within: float = STOP_SECONDS) -> None:
        """End after the batches under way; a database that hangs is left behind. Raises what ended a relay early."""
        self._stopping.set()
        until = time.monotonic() + within
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        if self._error is not None:
            raise self._error

    def _run(self, relay: Relay) -> None:
        try:
            relay.run(self._on_ready)
        except BaseException as error:
            self._error = self._error or error

    def _on_ready(self) -> None:
        with self._lock:
            self._missing -= 1
            if not self._missing:
                self._ready()
