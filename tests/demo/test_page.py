"""The demo's page, and the people that `createdemo` creates."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from realtime.auth.verification import verify
from tests.demo.people import Person, token_of

# The demo is only routed while DEBUG is on, which pytest-django turns off.
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("demo.urls"),
    pytest.mark.usefixtures("realtime_redis", "patient_outbox"),
]


@pytest.fixture
def built(monkeypatch):
    """As after `make desk`; a function that takes the files away again."""

    def say(path: str | None) -> None:
        monkeypatch.setattr("demo.views.finders.find", lambda name: path)

    say("/somewhere/desk.js")
    return say


def test_page_that_was_not_built_says_what_to_do(client, built):
    built(None)
    answer = client.get("/").content.decode()
    assert "make desk" in answer
    assert "Node 20.19 or newer" in answer
    assert "<script" not in answer


def test_page_says_where_the_sockets_are(client, monkeypatch, built):
    monkeypatch.delenv("SOCKETS_PUBLIC_URL", raising=False)
    monkeypatch.setenv("SOCKETS_PORT", "9001")
    for host, url in (
        ("localhost:8000", "ws://localhost:9001"),
        ("127.0.0.1", "ws://127.0.0.1:9001"),
        ("[::1]:8000", "ws://[::1]:9001"),
    ):
        answer = client.get("/", headers={"host": host})
        assert f'data-sockets="{url}"' in answer.content.decode()
    monkeypatch.setenv("SOCKETS_PUBLIC_URL", "wss://sockets.example.com/")
    answer = client.get("/")
    assert 'data-sockets="wss://sockets.example.com"' in answer.content.decode()
    policy = answer.headers["Content-Security-Policy"]
    assert "connect-src 'self' wss://sockets.example.com https://sockets.example.com" in policy


def test_createdemo_can_run_again_and_again(people: dict[str, Person], settings):
    people["ana"].user.set_password("forgotten")
    people["ana"].user.save()
    settings.DEBUG = True
    call_command("createdemo", verbosity=0)
    assert User.objects.count() == len(people)
    ana = User.objects.get(username="ana")
    assert ana.check_password("demo")
    claims = verify(token_of(ana))
    assert (claims.role, claims.name, claims.groups) == ("attendant", "Ana Lima", ("attendants",))
    roles = {person.user.username: verify(token_of(person.user)).role for person in people.values()}
    assert roles == {
        "ana": "attendant",
        "bia": "attendant",
        "carla": "customer",
        "davi": "customer",
        "elisa": "customer",
        "dora": "customer",
        "admin": "admin",
    }


def test_createdemo_is_refused_outside_development(settings):
    settings.DEBUG = False
    with pytest.raises(CommandError, match="DEBUG is off") as refused:
        call_command("createdemo")
    assert refused.value.returncode == 2
    assert not User.objects.exists()
