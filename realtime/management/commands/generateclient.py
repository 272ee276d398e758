"""`manage.py generateclient`: the events of this installation, as TypeScript, on stdout."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from realtime.spec.typescript import events_typescript


class Command(BaseCommand):
    help = "Print the events of this installation as TypeScript types."

    def handle(self, **_: Any) -> None:
        self.stdout.write(events_typescript(), ending="")
