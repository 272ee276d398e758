"""`manage.py check --deploy`: the production checklist."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.checks import run_checks

from realtime import extras
from realtime.checks.tokens import EXAMPLE_KEY
from tests.checking import production
from tests.e2e.harness import ROOT, python
from tests.example_environment import example, variables

SIDES = ("sockets", "web")
PAGE = (ROOT / "docs" / "deployment.md").read_text()
CODE = "".join(path.read_text() for path in (ROOT / "realtime/checks").glob("*.py"))
IDS = sorted(set(re.findall(r"realtime\.[WI]1\d\d", CODE)))


def ids(side: str = "sockets") -> set[str]:
    return {str(message.id).removeprefix("realtime.") for message in production(side)}


def database(engine: str) -> dict[str, dict[str, str]]:
    return {"default": {"ENGINE": f"django.db.backends.{engine}"}}


@pytest.fixture(autouse=True)
def ready_for_production(settings, monkeypatch) -> None:
    """Settings of the socket side without a finding, so that a test finds only what it changes."""
    monkeypatch.setattr(django_settings, "DATABASES", {})
    settings.REALTIME = {
        "REDIS_URL": "rediss://:secret@redis.internal:6379/0",
        "ALLOWED_ORIGINS": ["https://support.example.com"],
        "TRUSTED_PROXIES": ["10.0.0.0/8"],
        "METRICS_TOKEN": "secret",
    }
    settings.SIMPLE_JWT = {
        "ALGORITHM": "EdDSA",
        "VERIFYING_KEY": "public",
        "AUDIENCE": "support",
        "ISSUER": "https://id.example.com",
    }


@pytest.fixture
def web(settings, monkeypatch) -> None:
    monkeypatch.setattr(django_settings, "DATABASES", database("postgresql"))
    settings.SECRET_KEY = "one"
    settings.ALLOWED_HOSTS = ["support.example.com"]
    settings.SIMPLE_JWT = {**settings.SIMPLE_JWT, "SIGNING_KEY": "another"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which `make run` ran once, as an older version left it."""
    settings = tmp_path / "realtime" / "settings" / "base.py"
    settings.parent.mkdir(parents=True)
    shutil.copy(ROOT / "realtime" / "settings" / "base.py", settings)
    (tmp_path / ".run").mkdir()
    (tmp_path / ".run" / "development.env").write_text(
        "DEBUG=1\nSECRET_KEY=development-x\nJWT_SIGNING_KEY=development-y\n"
    )
    return tmp_path


@pytest.mark.parametrize("debug", [None, "", " ", "0", "off", "1", "true"])
def test_keys_of_make_run_are_only_for_development_that_is_said_to_be(
    folder: Path, monkeypatch, debug: str | None
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(extras, "project", dict)  # installed: the current folder is that of the keys
    monkeypatch.setattr(os, "environ", {} if debug is None else {"DEBUG": debug})
    found = runpy.run_path(str(folder / "realtime" / "settings" / "base.py"))
    is_development = debug in {"1", "true"}
    assert found["DEBUG"] is is_development
    assert found["SECRET_KEY"] == ("development-x" if is_development else "")
    assert found["SIMPLE_JWT"]["SIGNING_KEY"] == ("development-y" if is_development else "")


@pytest.mark.parametrize(
    ("text", "audience"),
    [
        ("", None),
        (" , ", None),
        ("chat", "chat"),
        ("chat,", "chat"),
        ("a,b", ["a", "b"]),
        (" a , b,,https://c.test/ ", ["a", "b", "https://c.test/"]),
    ],
)
def test_audience_is_a_name_or_names_separated_by_commas(monkeypatch, text: str, audience: Any):
    monkeypatch.setattr(os, "environ", {"JWT_AUDIENCE": text})
    settings = runpy.run_path(str(ROOT / "realtime" / "settings" / "base.py"))
    assert settings["SIMPLE_JWT"]["AUDIENCE"] == audience


def test_nothing_is_said_about_good_settings():
    assert ids() == set()


@pytest.mark.usefixtures("web")
def test_nothing_is_said_about_good_settings_of_the_web_side():
    assert ids("web") == set()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"QUERY_TOKEN": True}, {"W101"}),
        ({"ALLOWED_ORIGINS": ["https://a.example", "http://a.example"]}, {"W102"}),
        ({"ALLOWED_ORIGINS": ["null"]}, {"W102"}),
        ({"ALLOWED_ORIGINS": []}, {"W102"}),
        ({"TRUSTED_PROXIES": []}, {"I103"}),
        ({"REDIS_URL": "rediss://redis.internal:6379/0"}, {"W108"}),
        ({"REDIS_URL": "redis://:secret@redis.internal:6379/0"}, {"I109"}),
        ({"REDIS_URL": "redis://10.1.2.3"}, {"W108", "I109"}),
        ({"REDIS_URL": "rediss://10.1.2.3?password=secret"}, set()),
        ({"REDIS_URL": "rediss+sentinel://10.1.2.3/shop?sentinel_password=secret"}, {"W108"}),
        ({"REDIS_URL": "redis+sentinel://[fd00::1],[fd00::2]:3/shop"}, {"W108", "I109"}),
        ({"REDIS_URL": "redis+sentinel://[::1],[fd00::2]:3/shop"}, set()),
        ({"REDIS_URL": "redis+cluster://[fd00::1]:1,[fd00::2]:3"}, {"W108", "I109"}),
        ({"REDIS_URL": "redis://127.0.0.1:6379/0"}, set()),
        ({"REDIS_URL": "redis://localhost"}, set()),
        ({"REDIS_URL": "unix:///run/redis.sock"}, set()),
        ({"REDIS_URL": "redis://[nonsense"}, set()),
        ({"METRICS_TOKEN": ""}, {"W110"}),
        ({"DRAIN_SECONDS": 0}, {"W111"}),
        ({"LIMITS": {"RATE": 0, "ROOMS": 0}}, {"W112"}),
        ({"LIMITS": {"CONNECTIONS": 0}}, set()),
        ({"GRACE_PERIOD": "soon"}, set()),
    ],
)
def test_settings_of_the_socket_server(settings, values, found):
    settings.REALTIME = {**settings.REALTIME, **values}
    assert ids() == found


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"ALGORITHM": "HS256", "SIGNING_KEY": "shared"}, {"I104"}),
        ({"SIGNING_KEY": "private"}, {"W105"}),
        ({"AUDIENCE": None}, {"W106"}),
        ({"AUDIENCE": None, "ISSUER": None}, {"W106"}),
        ({"JWK_URL": "http://id.example.com/jwks"}, {"W107"}),
        ({"JWK_URL": "https://id.example.com/jwks"}, set()),
    ],
)
def test_tokens(settings, values, found):
    settings.SIMPLE_JWT = {**settings.SIMPLE_JWT, **values}
    assert ids() == found


@pytest.mark.usefixtures("web")
def test_hosts_keys_and_database_of_the_web_side(settings, monkeypatch):
    monkeypatch.setattr(django_settings, "DATABASES", database("sqlite3"))
    settings.ALLOWED_HOSTS = ["*"]
    settings.SECRET_KEY = settings.SIMPLE_JWT["SIGNING_KEY"]
    assert ids("web") == {"W113", "W114", "I115"}


def test_limits_that_are_off_are_named(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"RATE": 0, "ROOMS": 0}}
    [message] = production()
    assert message.msg == "Limits are switched off: REALTIME_LIMIT_RATE, REALTIME_LIMIT_ROOMS"


def test_no_secret_is_quoted(settings):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "redis://:secret@redis.internal"}
    settings.SIMPLE_JWT = {"ALGORITHM": "HS256", "SIGNING_KEY": "secret"}
    assert not any("secret" in str(message) for message in production())


def test_they_are_only_asked_for_with_deploy(settings):
    settings.REALTIME = {**settings.REALTIME, "QUERY_TOKEN": True}
    assert "realtime.W101" not in {message.id for message in run_checks(tags=["realtime"])}
    found = run_checks(tags=["realtime"], include_deployment_checks=True)
    assert "realtime.W101" in {message.id for message in found}


@pytest.mark.parametrize("id", IDS)
def test_each_is_documented(id: str):
    assert f"| `{id}` |" in PAGE


# --- With Django's own, as an operator calls it ---------------------------------------------------------


def check(side: str, **env: str) -> subprocess.CompletedProcess[str]:
    deploy = ("check", "--deploy", "--fail-level", "WARNING")
    return python("manage.py", *deploy, env={**example(side), **env})


@pytest.mark.parametrize("side", SIDES)
def test_example_environment_passes(side: str):
    done = check(side)
    assert done.returncode == 0, done.stderr


def test_keys_of_the_example_environment_are_known_for_what_they_are():
    """`realtime.E007` refuses them."""
    assert all(variables()[name].startswith(EXAMPLE_KEY) for name in ("SECRET_KEY", "JWT_SIGNING_KEY"))


@pytest.mark.parametrize("side", SIDES)
def test_settings_of_development_do_not_pass(side: str):
    done = check(side, DEBUG="1", WEB_HTTPS="0", ALLOWED_ORIGINS="")
    assert done.returncode != 0
    of_sockets = {"realtime.W101", "realtime.W102"}
    found = set(re.findall(r"\w+\.W\d+", done.stderr))
    assert "security.W018" in found
    assert found & of_sockets == (of_sockets if side == "sockets" else set())
