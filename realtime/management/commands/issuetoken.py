"""`manage.py issuetoken`: an access token, for trying things out."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, CommandParser

from realtime.management import base
from realtime.protocol.namespaces import roles
from realtime.protocol.payloads import Id, PresenceGroup


def _ids(text: str, kind: type[Id] = Id) -> list[str]:
    return [kind.parse(item.strip()) for item in text.split(",") if item.strip()]


class Command(base.Command):
    app, extra = "realtime.auth", "asgi"
    help = "Print a signed access token, and nothing else."
    requires_system_checks = ("realtime",)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--user", required=True, help="user id")
        parser.add_argument(
            "--role", required=True, help="a role that a namespace lets in, for example attendant"
        )
        parser.add_argument("--name", default="", help="what other users see")
        parser.add_argument("--groups", help="presence groups, comma-separated (default: attendants)")
        parser.add_argument("--threads", default="", help="a customer's own threads, comma-separated")
        parser.add_argument(
            "--ttl", type=float, default=3600, help="seconds until it expires (default %(default)s)"
        )

    def handle(
        self, *, user: str, role: str, name: str, groups: str | None, threads: str, ttl: float, **_: Any
    ) -> None:
        from realtime.auth.credentials import MAX_TOKEN_LENGTH  # noqa: PLC0415
        from realtime.auth.issuing import issue  # noqa: PLC0415  (an extra)

        if role not in roles():
            raise CommandError(
                f"--role must be one of {', '.join(sorted(roles()))}, got {role!r}", returncode=2
            )
        if not 0 < ttl <= 366 * 86400:
            raise CommandError(f"--ttl must be more than 0 and at most a year, got {ttl:g}", returncode=2)
        try:
            token = issue(
                user_id=Id.parse(user),
                role=role,
                name=name,
                groups=None if groups is None else _ids(groups, PresenceGroup),
                threads=_ids(threads),
                ttl=ttl,
            )
        except (ValueError, ImproperlyConfigured) as error:
            raise CommandError(str(error), returncode=2) from error
        if len(token) > MAX_TOKEN_LENGTH:
            raise CommandError(
                f"the token would have {len(token)} characters, and the server accepts {MAX_TOKEN_LENGTH}: "
                "leave out some threads or groups",
                returncode=2,
            )
        self.stdout.write(token)
