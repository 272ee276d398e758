"""`manage.py generateclient`: the events of this installation, as TypeScript, on stdout."""

from __future__ import annotations

from typing import Any

from realtime.management import base
from realtime.spec.typescript import events_typescript


class Command(base.Command):
    help = "Print the events of this installation as TypeScript types."

    def handle(self, **_: Any) -> None:
        self.stdout.write(events_typescript(), ending="")
