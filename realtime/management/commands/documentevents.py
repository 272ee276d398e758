"""`manage.py documentevents`: docs/events.md, from the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from realtime.management.generator import Generator
from realtime.spec.markdown import events_markdown


class Command(Generator):
    help = "Print the catalogue of events as Markdown."

    def generate(self, options: Mapping[str, Any]) -> str:
        return events_markdown()
