"""Commands that print what they generate from the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from realtime.management import base


class Generator(base.Command):
    """Prints what `generate` returns. It needs no keys, no database and no Redis, so no system check is run."""

    requires_system_checks: tuple[str, ...] = ()

    def generate(self, options: Mapping[str, Any]) -> str:
        """The text."""
        raise NotImplementedError

    def handle(self, **options: Any) -> None:
        try:
            text = self.generate(options)
        except ImproperlyConfigured as error:
            raise CommandError(str(error), returncode=2) from error
        self.stdout.write(text, ending="")
