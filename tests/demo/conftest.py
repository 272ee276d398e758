from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command

from tests.demo.people import Person


@pytest.fixture(autouse=True)
def development(settings: Any) -> None:
    """Static files straight from the applications, none collected; passwords that cost nothing."""
    settings.WHITENOISE_AUTOREFRESH = True
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def people(settings: Any) -> dict[str, Person]:
    settings.DEBUG = True
    call_command("createdemo", verbosity=0)
    settings.DEBUG = False
    User.objects.create_user("dora", password="demo", first_name="Dora", last_name="Nunes")
    return {user.username: Person(user) for user in User.objects.all()}


@pytest.fixture
def ana(people: dict[str, Person]) -> Person:
    return people["ana"]


@pytest.fixture
def bia(people: dict[str, Person]) -> Person:
    return people["bia"]


@pytest.fixture
def carla(people: dict[str, Person]) -> Person:
    return people["carla"]


@pytest.fixture
def dora(people: dict[str, Person]) -> Person:
    """A customer too."""
    return people["dora"]
