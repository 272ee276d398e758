"""`manage.py createdemo`: the demo's users."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth.models import Group, User
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

PASSWORD = "demo"  # noqa: S105  (well known, and refused unless DEBUG is on)
TEAM = "attendants"
PEOPLE: dict[str, dict[str, Any]] = {
    "ana": {"first_name": "Ana", "last_name": "Lima", "is_staff": True},
    "bia": {"first_name": "Bia", "last_name": "Souza", "is_staff": True},
    "carla": {"first_name": "Carla", "last_name": "Reis"},
    "davi": {"first_name": "Davi", "last_name": "Alves"},
    "elisa": {"first_name": "Elisa", "last_name": "Prado"},
    "admin": {"first_name": "Admin", "is_staff": True, "is_superuser": True},
}


class Command(BaseCommand):
    """Creates the users, or resets them."""

    help = f"Create the demo's users ({', '.join(PEOPLE)}), each with the password {PASSWORD!r}. DEBUG only."

    @transaction.atomic
    def handle(self, **options: Any) -> None:
        if not settings.DEBUG:
            raise CommandError("DEBUG is off: users with a well-known password are refused.", returncode=2)
        team, _ = Group.objects.get_or_create(name=TEAM)
        for username, fields in PEOPLE.items():
            user, _ = User.objects.update_or_create(username=username, defaults=fields)
            # Without the validators, which would refuse this password.
            user.set_password(PASSWORD)
            user.save(update_fields=["password"])
            user.groups.set([team] if user.is_staff else [])
        self.stdout.write(f"Demo users, password {PASSWORD!r}: {', '.join(PEOPLE)}")
