from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.core.checks import Error, run_checks
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st
from rest_framework_simplejwt.settings import DEFAULTS

from realtime.checks.tokens import DEVELOPMENT_KEY, EXAMPLE_KEY
from tests.checking import ids, startup


@pytest.fixture
def set_jwt(settings):
    def change(**values: object) -> None:
        settings.SIMPLE_JWT = {**settings.SIMPLE_JWT, **values}

    return change


def test_default_settings_are_fine():
    assert startup() == []


def test_checks_run_with_manage_py_check(set_realtime):
    set_realtime(GRACE_PERIOD="soon")
    assert "realtime.E001" in {message.id for message in run_checks(tags=["realtime"])}


def test_variable_that_the_projects_own_setting_hides_is_a_warning(settings, monkeypatch):
    monkeypatch.setenv("REALTIME_METRICS_TOKEN", "a secret")
    assert "realtime.W005" in ids()
    [warning] = [message for message in startup() if message.id == "realtime.W005"]
    assert "REALTIME_METRICS_TOKEN" in warning.msg
    assert "a secret" not in f"{warning.msg} {warning.hint}"


def test_every_error_comes_with_a_hint(set_realtime, set_jwt):
    set_realtime(AWAY_AFTER=1000, GRACE_PERIOD=1000, EVENTS=["no.such"], HUB_THREAD_POLICY="no.such")
    set_jwt(SIGNING_KEY="")
    messages = startup()
    assert len(messages) == 5
    assert all(message.hint for message in messages)


PUBLIC_KEY = (
    rsa.generate_private_key(public_exponent=65537, key_size=2048)
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    .decode()
)
WITHOUT_KEYS = {"SIGNING_KEY": "", "VERIFYING_KEY": "", "JWK_URL": None}
REALTIME: list[tuple[dict[str, Any], str]] = [
    *(
        ({"HEARTBEAT_INTERVAL": beat, "AWAY_AFTER": away, "PRESENCE_TTL": 300}, "E002")
        for beat, away in ((75, 75), (80, 75), (30, 300), (30, 301))
    ),
    *(({"NODE_LEASE": 10, "GRACE_PERIOD": grace}, "E003") for grace in (290, 295)),
    ({"NODE_LEASE": 10, "GRACE_PERIOD": 289}, ""),
    ({"EVENTS": ["no.such.module"]}, "E004"),
    *(
        ({f"{namespace}_THREAD_POLICY": path}, "E005")
        for namespace in ("HUB", "PORTAL")
        for path in ("no.such.policy", "hub.policy.no_such", "nodots", "decimal.Decimal", "os.path.join")
    ),
    *(({"TRUSTED_PROXIES": ["127.0.0.1", each]}, "E011") for each in ("10.0.0.0/33", "proxy", "10.0.0.1/8")),
    *(
        ({"ALLOWED_ORIGINS": ["https://a.test", each]}, "E022")
        for each in (
            *(
                "https://a.test/",
                "https://a.test/app",
                "*",
                "https://*",
                "https://*.a.test",
                "a.test",
                "//a.test",
            ),
            *(
                "a.test:8000",
                "https://",
                "https:a.test",
                "wss://a.test",
                "ws://a.test:8001",
                " https://b.test",
            ),
            *(
                "https://a.test ",
                "https://a test",
                "https://a.test?x",
                "https://a.test#x",
                "https://u@a.test",
            ),
            *(
                "https://a.test,https://b.test",
                "https://a.test:",
                "https://a.test:port",
                "https://a.test:123456",
                "https://a.test:65536",
                "https://a.test:0",
                "https://a.test:0443",
            ),
            *(
                "https://bücher.test",
                "http://::1",
                "http://[0:0:0:0:0:0:0:1]",
                "http://[::g]",
                "http://[::ffff:127.0.0.1]",
                "NULL/",
                "'https://a'",
            ),
        )
    ),
    *(
        ({"ALLOWED_ORIGINS": [each]}, "")
        for each in (
            *(
                "https://a.test",
                "https://A.test",
                "https://a.test:443",
                "http://localhost:3000",
                "http://127.0.0.1",
            ),
            *("http://[::1]:65535", "http://[::ffff:7f00:1]"),
            *("http://[::1]:8000", "null", "file://", "chrome-extension://abcdefgh", "capacitor://localhost"),
            *("https://xn--bcher-kva.test", "http://a_b.test", "https://a.test."),
        )
    ),
    ({"CLAIMS": "tests.auth.test_claims.to_principal"}, ""),
    *(
        ({"REDIS_URL": url}, "")
        for url in ("redis://host", "redis://host/", "redis://host/0", "redis+cluster://a,b")
    ),
]
JWT: list[tuple[dict[str, Any], str]] = [
    ({"ALGORITHM": "HS256", "SIGNING_KEY": ""}, "E006"),
    *(({"ALGORITHM": algorithm, **WITHOUT_KEYS}, "E006") for algorithm in ("RS256", "ES256", "EdDSA")),
    ({"ALGORITHM": "RS256", **WITHOUT_KEYS, "VERIFYING_KEY": PUBLIC_KEY}, ""),
    ({"ALGORITHM": "RS256", **WITHOUT_KEYS, "JWK_URL": "https://id.test/jwks"}, ""),
    ({"ALGORITHM": "RS256", **WITHOUT_KEYS, "JWK_URL": "http://[::1]:8080/realms/a%20b/certs?x=1"}, ""),
    *(({name: None}, "E014") for name in ("JTI_CLAIM", "TOKEN_TYPE_CLAIM", "USER_ID_CLAIM")),
    ({"JTI_CLAIM": ""}, "E014"),
    ({"JTI_CLAIM": "user_id"}, "E014"),
    ({"JTI_CLAIM": "sub", "USER_ID_CLAIM": "sub"}, "E014"),
    ({"JTI_CLAIM": "tid", "USER_ID_CLAIM": "sub", "TOKEN_TYPE_CLAIM": "use"}, ""),
    *(({"LEEWAY": each}, "") for each in (0, 2.5, timedelta(seconds=10), None)),
    *(({"LEEWAY": each}, "E009") for each in ("10", [10])),
    ({"REFRESH_TOKEN_LIFETIME": timedelta(days=1)}, ""),
    ({"REFRESH_TOKEN_LIFETIME": timedelta(days=1, seconds=1)}, "W003"),
]


@pytest.mark.parametrize(("values", "found"), REALTIME, ids=repr)
def test_value_of_a_setting_is_right_or_an_error(set_realtime, values: dict[str, Any], found: str):
    set_realtime(**values)
    assert ids() == ({f"realtime.{found}"} if found else set())


@pytest.mark.parametrize(("values", "found"), JWT, ids=lambda value: repr(value)[:60])
def test_value_of_simple_jwt_is_right_or_an_error(set_jwt, values: dict[str, Any], found: str):
    set_jwt(**values)
    assert ids() == ({f"realtime.{found}"} if found else set())


# --- E001: the setting itself ------------------------------------------------------------------------


def test_wrong_value_is_an_error_that_names_it(set_realtime):
    set_realtime(GRACE_PERIOD="soon")
    (error,) = startup()
    assert error.id == "realtime.E001"
    assert "GRACE_PERIOD" in error.msg


# --- E022: origins -----------------------------------------------------------------------------------


def test_origin_that_no_page_has_is_named_with_a_hint(set_realtime):
    set_realtime(ALLOWED_ORIGINS=["https://a.test", "https://b.test/", "*"])
    (error,) = startup()
    assert error.id == "realtime.E022"
    assert "'https://b.test/', '*'" in error.msg
    assert "https://support.example.com" in error.hint


# --- E017: what is imported by name --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no.such.mapping", "cannot import it"),
        ("nodots", "cannot import it"),
        ("hub.policy.any_thread", "not async"),
        ("realtime.auth.jwks.KEYS_SECONDS", "got 300.0"),
    ],
)
def test_mapping_of_claims_is_a_function_that_is_not_async(set_realtime, path, problem):
    set_realtime(CLAIMS=path)
    (error,) = startup()
    assert error.id == "realtime.E017"
    assert problem in error.msg


# --- E006, E007, E015: keys --------------------------------------------------------------------------


WORDS = "the quick brown fox jumps over the lazy dog"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        *((key, "bytes, at least 32") for key in ("x", WORDS[:31], "é" * 15, "secret")),
        *(
            (key, "is a repeated pattern")
            for key in ("x" * 32, "x" * 4000, "ab" * 20, "secret" * 6, WORDS[:20] * 3)
        ),
        *(
            (key, "is a repeated pattern")
            for key in ("secret-" * 6 + "key", "x" * 40 + "1", "change-me-" + "x" * 50)
        ),
        *((key, "is a repeated pattern") for key in ("\n" * 40, "0123456789" * 4, " " * 20 + "x" * 20)),
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.parametrize("debug", [True, False])
def test_shared_secret_that_is_short_or_a_pattern_is_an_error_that_does_not_quote_it(
    settings, set_jwt, key: str, said: str, debug: bool
):
    settings.DEBUG = debug
    set_jwt(ALGORITHM="HS512", SIGNING_KEY=key)
    [found] = [message for message in startup() if message.id == "realtime.E015"]
    assert isinstance(found, Error)
    assert said in found.msg
    assert key not in found.msg or key == "x"


def test_weak_key_is_called_what_its_owner_calls_it(settings, monkeypatch):
    monkeypatch.setitem(DEFAULTS, "SIGNING_KEY", "short")  # where simplejwt has put SECRET_KEY
    settings.SIMPLE_JWT = {}
    [found] = [message for message in startup() if message.id == "realtime.E015"]
    assert found.msg == "SECRET_KEY has 5 bytes, at least 32 are needed"


def is_strong(secret: str) -> bool:
    jwt = {"ALGORITHM": "HS256", "SIGNING_KEY": secret}
    with override_settings(SIMPLE_JWT=jwt):
        return "realtime.E015" not in ids()


@given(st.sampled_from([secrets.token_hex, secrets.token_urlsafe]), st.integers(32, 500))
def test_random_secret_is_strong_enough(make: Callable[[int], str], size: int):
    assert is_strong(make(size))


def test_passphrase_is_strong_enough():
    assert is_strong(WORDS)


@pytest.mark.parametrize("key", ["x", "x" * 40])
def test_private_key_is_not_judged_as_a_secret(set_jwt, key: str):
    set_jwt(ALGORITHM="RS256", SIGNING_KEY=key, VERIFYING_KEY=PUBLIC_KEY)
    assert "realtime.E015" not in ids()


@pytest.mark.parametrize("beginning", [DEVELOPMENT_KEY, EXAMPLE_KEY])
def test_signing_key_of_development_or_of_an_example_is_refused_with_debug_off(settings, set_jwt, beginning):
    settings.DEBUG = False
    set_jwt(SIGNING_KEY=beginning + WORDS)
    assert ids() == {"realtime.E007"}


@pytest.mark.parametrize("beginning", [DEVELOPMENT_KEY, EXAMPLE_KEY])
def test_secret_key_of_development_or_of_an_example_is_refused_with_debug_off(settings, beginning):
    settings.DEBUG = False
    settings.SECRET_KEY = beginning + "x" * 50
    assert ids() == {"realtime.E007"}


def test_development_keys_are_fine_with_debug_on(settings, set_jwt):
    settings.DEBUG = True
    settings.SECRET_KEY = DEVELOPMENT_KEY + "x" * 50
    set_jwt(SIGNING_KEY=DEVELOPMENT_KEY + WORDS)
    assert ids() == set()


# --- E009: tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [("RS256", "junk"), ("ES256", "-----BEGIN PUBLIC KEY-----\nxx"), ("none", ""), ("XX1", "x")],
)
def test_key_or_algorithm_that_cannot_be_used_is_an_error(settings, algorithm: str, key: str):
    settings.SIMPLE_JWT = {**settings.SIMPLE_JWT, "ALGORITHM": algorithm, "VERIFYING_KEY": key}
    assert "realtime.E009" in [message.id for message in startup()]


@pytest.mark.parametrize(
    "url",
    [
        *("https://ana:hidden@id.test/jwks", "https://hidden@id.test", "https://id.test:hidden/jwks"),
        *("https://id.test/jwks?key=hidden key", "https://id.test/hidden\n", "https://[hidden/jwks"),
        *("hidden", "/jwks/hidden", "https:///hidden", "file:///etc/hidden", "ftp://id.test/hidden"),
    ],
)
def test_address_of_keys_that_cannot_be_fetched_is_an_error_that_does_not_quote_it(set_jwt, url: str):
    set_jwt(**{"ALGORITHM": "RS256", **WITHOUT_KEYS, "JWK_URL": url})
    [found] = [message for message in startup() if message.id == "realtime.E009"]
    assert "hidden" not in str(found)


@pytest.mark.parametrize(
    "leeway", [-1, "30", True, float("nan"), float("inf"), 1e300, timedelta(seconds=-1)], ids=repr
)
def test_leeway_that_is_no_time_is_an_error(set_jwt, leeway: object):
    set_jwt(LEEWAY=leeway)
    [found] = [message for message in startup() if message.id == "realtime.E009"]
    assert repr(leeway) in found.msg
    assert found.hint


@pytest.mark.parametrize("leeway", [None, 0, 1.5, timedelta(minutes=1)], ids=repr)
def test_leeway_of_some_seconds_is_none(set_jwt, leeway: object):
    set_jwt(LEEWAY=leeway)
    assert ids() == set()
