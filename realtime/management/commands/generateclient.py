"""`manage.py generateclient`: the events of this installation, as TypeScript, on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.management.base import CommandParser

from realtime.management.generator import Generator
from realtime.spec.typescript import events_typescript, own_events_typescript


class Command(Generator):
    help = "Print the types of this product's own events, as TypeScript declarations for the client."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--all",
            action="store_true",
            help="print a module with all events, those that the client knows included",
        )

    def generate(self, options: Mapping[str, Any]) -> str:
        return events_typescript() if options["all"] else own_events_typescript()
