"""What the project's commands have in common: the packages and the checks of their side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from realtime import extras
from realtime.checks import collisions, sides
from realtime.telemetry.logs import write_facts


class Command(BaseCommand):
    """A command of one side. With something missing, or another package in the place of ours, it exits with 2.

    The checks of its side run before it, also where the app of that side is not in INSTALLED_APPS.
    """

    app = ""
    """The app, or the package, whose checks concern it, besides `realtime` (`realtime.checks.sides`)."""
    extra = ""
    """The extra that holds what it needs."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        write_facts()
        name = type(self).__module__.rpartition(".")[2]
        if problem := extras.problem(name, self.extra):
            raise CommandError(problem, returncode=2)
        for problem in collisions.problems(serves=self.app == "realtime.server"):
            raise CommandError(problem, returncode=2)
        if self.app:
            sides.register_checks(self.app)
        return super().execute(*args, **options)


@contextmanager
def listening(host: str, port: int, option: str = "--port") -> Iterator[None]:
    """Exit with code 2 if the port is out of range, or if the block cannot listen on the address."""
    if not 0 <= port < 65536:
        raise CommandError(f"{option} must be between 0 and 65535, got {port}", returncode=2)
    try:
        yield
    except OSError as error:
        raise CommandError(f"cannot listen on {host}:{port}: {error.strerror}", returncode=2) from error
