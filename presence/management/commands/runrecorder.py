"""`manage.py runrecorder`: presence transitions from Redis into the database."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType
from typing import Any, NoReturn

from django.core.management.base import BaseCommand

from presence.recorder.recorder import Recorder

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Command(BaseCommand):
    help = "Record presence transitions in the database. Prints 'ready' once it has caught up."
    requires_system_checks = ("realtime",)

    def handle(self, **_: Any) -> None:
        for number in SIGNALS:
            signal.signal(number, _interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            Recorder().run(self._ready)

    def _ready(self) -> None:
        self.stdout.write("ready")
        self.stdout.flush()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End at once, also out of a call to a Redis that hangs; a transaction that is open is rolled back.

    Once: Ctrl-C and the signal of the process manager usually come together.
    """
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
