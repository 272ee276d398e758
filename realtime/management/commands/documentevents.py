"""`manage.py documentevents`: docs/events.md, from the catalogue."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from realtime.spec.markdown import events_markdown


class Command(BaseCommand):
    help = "Print the catalogue of events as Markdown."

    def handle(self, **_: Any) -> None:
        self.stdout.write(events_markdown(), ending="")
