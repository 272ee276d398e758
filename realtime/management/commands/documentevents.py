"""`manage.py documentevents`: docs/events.md, from the catalogue."""

from __future__ import annotations

from typing import Any

from realtime.management import base
from realtime.spec.markdown import events_markdown


class Command(base.Command):
    help = "Print the catalogue of events as Markdown."

    def handle(self, **_: Any) -> None:
        self.stdout.write(events_markdown(), ending="")
