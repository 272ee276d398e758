"""The numbers of a relay at `/metrics`. Only this module needs prometheus-client, which a backbone may lack."""

from __future__ import annotations

from realtime.outbox.relay import Numbers
from realtime.telemetry.metrics import OUTBOX_AGE, OUTBOX_BACKLOG, OUTBOX_FAILURES, OUTBOX_SENT


class ShownNumbers(Numbers):
    """The numbers of one database, with its alias as their label."""

    def __init__(self, using: str) -> None:
        super().__init__()
        self._backlog, self._age = OUTBOX_BACKLOG.labels(using), OUTBOX_AGE.labels(using)
        self._sent, self._failures = OUTBOX_SENT.labels(using), OUTBOX_FAILURES.labels(using)

    def on_sent(self, rows: int) -> None:
        super().on_sent(rows)
        self._sent.inc(rows)

    def on_failure(self) -> None:
        self._failures.inc()

    def on_backlog(self, rows: int, age: float) -> None:
        super().on_backlog(rows, age)
        self._backlog.set(rows)
        self._age.set(age)
