from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.core.checks import Error, run_checks
from hypothesis import given
from hypothesis import strategies as st

from realtime.checks.startup import DEVELOPMENT_KEY, EXAMPLE_KEY, _weakness, check_settings


def ids() -> set[str]:
    return {str(message.id) for message in check_settings(None)}


@pytest.fixture
def set_realtime(settings):
    def change(**values: object) -> None:
        settings.REALTIME = {**settings.REALTIME, **values}

    return change


@pytest.fixture
def set_jwt(settings):
    def change(**values: object) -> None:
        settings.SIMPLE_JWT = {**settings.SIMPLE_JWT, **values}

    return change


def test_default_settings_are_fine():
    assert check_settings(None) == []


def test_checks_run_with_manage_py_check(set_realtime):
    set_realtime(GRACE_PERIOD="soon")
    assert "realtime.E001" in {message.id for message in run_checks(tags=["realtime"])}


def test_every_error_comes_with_a_hint(set_realtime, set_jwt):
    set_realtime(AWAY_AFTER=1000, GRACE_PERIOD=1000, EVENTS=["no.such"], HUB_THREAD_POLICY="no.such")
    set_jwt(SIGNING_KEY="")
    messages = check_settings(None)
    assert len(messages) == 5
    assert all(message.hint for message in messages)


# --- E001: the setting itself ------------------------------------------------------------------------


def test_wrong_value_is_an_error_that_names_it(set_realtime):
    set_realtime(GRACE_PERIOD="soon")
    (error,) = check_settings(None)
    assert error.id == "realtime.E001"
    assert "GRACE_PERIOD" in error.msg


# --- E002, E003: durations that contradict each other ------------------------------------------------


@pytest.mark.parametrize(
    "durations",
    [
        {"HEARTBEAT_INTERVAL": 75, "AWAY_AFTER": 75},
        {"HEARTBEAT_INTERVAL": 80, "AWAY_AFTER": 75},
        {"AWAY_AFTER": 300, "PRESENCE_TTL": 300},
        {"AWAY_AFTER": 301, "PRESENCE_TTL": 300},
    ],
)
def test_heartbeat_must_be_shorter_than_away_and_away_than_ttl(set_realtime, durations):
    set_realtime(**durations)
    assert ids() == {"realtime.E002"}


@pytest.mark.parametrize("grace", [290, 295])
def test_lease_and_grace_must_be_shorter_than_ttl(set_realtime, grace):
    set_realtime(NODE_LEASE=10, GRACE_PERIOD=grace)
    assert ids() == {"realtime.E003"}


def test_lease_and_grace_just_shorter_than_ttl_is_fine(set_realtime):
    set_realtime(NODE_LEASE=10, GRACE_PERIOD=289)
    assert ids() == set()


# --- E004, E005, E017: what is imported by name ------------------------------------------------------


def test_module_of_events_that_cannot_be_imported(set_realtime):
    set_realtime(EVENTS=["no.such.module"])
    assert ids() == {"realtime.E004"}


@pytest.mark.parametrize("name", ["HUB_THREAD_POLICY", "PORTAL_THREAD_POLICY"])
@pytest.mark.parametrize("path", ["no.such.policy", "hub.policy.no_such", "nodots"])
def test_policy_that_cannot_be_imported(set_realtime, name, path):
    set_realtime(**{name: path})
    assert ids() == {"realtime.E005"}


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
    (error,) = check_settings(None)
    assert error.id == "realtime.E017"
    assert problem in error.msg


def test_mapping_of_claims_that_can_be_called_is_fine(set_realtime):
    set_realtime(CLAIMS="tests.auth.test_claims.to_principal")
    assert ids() == set()


# --- E006, E007, E015: keys --------------------------------------------------------------------------


def test_shared_secret_is_required_for_hs(set_jwt):
    set_jwt(ALGORITHM="HS256", SIGNING_KEY="")
    assert ids() == {"realtime.E006"}


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
    [found] = [message for message in check_settings(None) if message.id == "realtime.E015"]
    assert isinstance(found, Error)
    assert said in found.msg
    assert key not in found.msg or key == "x"


@given(st.sampled_from([secrets.token_hex, secrets.token_urlsafe]), st.integers(32, 500))
def test_random_secret_is_strong_enough(make: Callable[[int], str], size: int):
    assert not _weakness(make(size))


def test_passphrase_is_strong_enough():
    assert not _weakness(WORDS)


@pytest.mark.parametrize("key", ["x", "x" * 40])
def test_private_key_is_not_judged_as_a_secret(set_jwt, key: str):
    set_jwt(ALGORITHM="RS256", SIGNING_KEY=key, VERIFYING_KEY=PUBLIC_KEY)
    assert "realtime.E015" not in ids()


# --- E014: claims ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        {"JTI_CLAIM": None},
        {"JTI_CLAIM": ""},
        {"TOKEN_TYPE_CLAIM": None},
        {"USER_ID_CLAIM": None},
        {"JTI_CLAIM": "user_id"},
        {"JTI_CLAIM": "sub", "USER_ID_CLAIM": "sub"},
    ],
)
def test_claims_without_a_name_of_their_own_are_an_error(set_jwt, names: dict[str, Any]):
    set_jwt(**names)
    assert ids() == {"realtime.E014"}


def test_claims_may_have_other_names(set_jwt):
    set_jwt(JTI_CLAIM="tid", USER_ID_CLAIM="sub", TOKEN_TYPE_CLAIM="use")
    assert ids() == set()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_public_key_is_required_for_asymmetric_algorithms(set_jwt, algorithm):
    set_jwt(ALGORITHM=algorithm, SIGNING_KEY="", VERIFYING_KEY="", JWK_URL=None)
    assert ids() == {"realtime.E006"}


PUBLIC_KEY = (
    rsa.generate_private_key(public_exponent=65537, key_size=2048)
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    .decode()
)


@pytest.mark.parametrize(
    "with_key", [{"VERIFYING_KEY": PUBLIC_KEY}, {"JWK_URL": "https://id.test/jwks"}], ids=["key", "jwks"]
)
def test_socket_server_needs_only_what_verifies(set_jwt, with_key):
    set_jwt(**{"ALGORITHM": "RS256", "SIGNING_KEY": "", "VERIFYING_KEY": "", "JWK_URL": None, **with_key})
    assert ids() == set()


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


# --- E008: channel layer -----------------------------------------------------------------------------


def test_channel_layer_in_memory_is_refused(settings):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    assert ids() == {"realtime.E008"}


@pytest.mark.parametrize(
    "url",
    [
        "foo://x",
        "redis://host:port/0",
        "redis",
        "redis+sentinel://:secret@host:26379",
        "redis+sentinel://:secret@host:port/primary",
        "redis+sentinel://:secret@/primary",
        "redis+sentinel://:secret@host/primary/first",
        "unix+sentinel://:secret@host/primary",
        "redis+cluster://:secret@host/1",
        "redis+cluster://:secret@host:port",
    ],
)
def test_redis_url_that_is_none_is_an_error_that_does_not_quote_it(settings, url: str):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": f"{url}?password=secret"}
    found = [message for message in check_settings(None) if message.id == "realtime.E010"]
    assert len(found) == 1
    assert "secret" not in str(found[0])


@pytest.mark.parametrize("name", ["decode_responses", "ssl_ca_certs", "nonsense"])
def test_option_of_redis_url_that_is_not_permitted_is_an_error_that_names_it(set_realtime, name: str):
    set_realtime(REDIS_URL=f"redis://:secret@host/0?socket_timeout=3&{name}=secret")
    found = [message for message in check_settings(None) if message.id == "realtime.E010"]
    assert len(found) == 1
    assert repr(name) in found[0].msg
    assert "secret" not in str(found[0])


def test_cluster_wants_our_own_channel_layer(settings):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "redis+cluster://a,b:7001"}
    assert ids() == set()
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer"}}
    assert ids() == {"realtime.E012", "realtime.W002"}


@pytest.mark.parametrize("proxies", ["10.0.0.0/33", "proxy", "10.0.0.1/8"])
def test_trusted_proxy_that_is_no_network_is_an_error(settings, proxies: str):
    settings.REALTIME = {**settings.REALTIME, "TRUSTED_PROXIES": ["127.0.0.1", proxies]}
    assert ids() == {"realtime.E011"}


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [("RS256", "junk"), ("ES256", "-----BEGIN PUBLIC KEY-----\nxx"), ("none", ""), ("XX1", "x")],
)
def test_key_or_algorithm_that_cannot_be_used_is_an_error(settings, algorithm: str, key: str):
    settings.SIMPLE_JWT = {**settings.SIMPLE_JWT, "ALGORITHM": algorithm, "VERIFYING_KEY": key}
    assert "realtime.E009" in [message.id for message in check_settings(None)]


# --- W003: orders that a refresh token outlives -------------------------------------------------------


def test_refresh_token_must_not_outlive_orders(set_jwt):
    set_jwt(REFRESH_TOKEN_LIFETIME=timedelta(days=1))
    assert ids() == set()
    set_jwt(REFRESH_TOKEN_LIFETIME=timedelta(days=1, seconds=1))
    assert ids() == {"realtime.W003"}


# --- E016: channels cross databases ------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "redis://host/3",
        "redis://host?db=3",
        "rediss://:secret@host:6380/3",
        "unix:///run/redis.sock?db=3",
        "redis+sentinel://a,b/primary/3",
    ],
)
def test_database_other_than_0_wants_a_prefix_of_its_own(set_realtime, url):
    set_realtime(REDIS_URL=url)
    (error,) = check_settings(None)
    assert error.id == "realtime.E016"
    assert "database 3" in error.msg
    assert "secret" not in error.msg
    set_realtime(PREFIX="shop")
    assert ids() == set()


@pytest.mark.parametrize("url", ["redis://host", "redis://host/", "redis://host/0", "redis+cluster://a,b"])
def test_database_0_is_fine_with_the_default_prefix(set_realtime, url):
    set_realtime(REDIS_URL=url)
    assert ids() == set()
