"""`manage.py pruneoutbox`: drops messages that are too old to be of use."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseError

from realtime.outbox import table
from realtime.outbox.management.commands.runoutbox import add_database_option, known_databases

BATCH = 1000
LONGEST = 100 * 366 * 86400


class Command(BaseCommand):
    help = "Drop the messages of the outbox that are older than --older-than: they will not be sent."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--older-than", type=float, required=True, metavar="SECONDS", help="age; required"
        )
        add_database_option(parser)

    def handle(self, *, older_than: float, databases: list[str] | None, **_: Any) -> None:
        if not 0 <= older_than <= LONGEST:
            raise CommandError(
                f"--older-than must be between 0 and {LONGEST} seconds, got {older_than:g}", returncode=2
            )
        for alias in known_databases(databases):
            try:
                count = _prune(alias, older_than)
            except DatabaseError as error:
                raise CommandError(f"{alias}: {error}".strip(), returncode=2) from error
            self.stdout.write(f"{alias}: {count} dropped")


def _prune(using: str, older_than: float) -> int:
    """Delete in batches, each from the oldest on; a row that is being sent is left alone."""
    count = 0
    while ids := list(
        table.older_than(using, older_than).order_by("pk").values_list("pk", flat=True)[:BATCH]
    ):
        dropped = table.drop(using, ids)
        count += dropped
        if not dropped:
            break
    return count
