from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st
from rest_framework_simplejwt import settings as simplejwt

from realtime.auth import verification
from realtime.auth.issuing import issue
from realtime.auth.verification import authenticate, verify
from realtime.protocol.handshake_errors import AuthenticationFailed
from tests.auth.signing import claims, failure, sign
from tests.e2e.jwks_server import JwksServer


@pytest.fixture
def use_jwt(settings) -> Callable[..., None]:
    """`SIMPLE_JWT` changed for one test."""

    def change(**values: Any) -> None:
        settings.SIMPLE_JWT = {**settings.SIMPLE_JWT, **values}

    return change


# --- Signatures and times ----------------------------------------------------------------------------


def test_expired_token_is_token_expired():
    assert failure(lambda: verify(sign(exp=int(time.time()) - 1))).code == "token_expired"


def test_leeway_keeps_an_expired_token_good_for_a_while(use_jwt):
    use_jwt(LEEWAY=30)
    assert verification.leeway() == 30
    assert verify(sign(exp=int(time.time()) - 10)).user_id == "7"
    assert failure(lambda: verify(sign(exp=int(time.time()) - 40))).code == "token_expired"


def test_without_leeway_there_is_none():
    assert verification.leeway() == 0


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_token_of_a_clock_that_is_a_little_ahead_is_good(claim: str):
    assert verify(sign(**{claim: time.time() + 8})).user_id == "7"


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_token_of_a_clock_that_is_far_ahead_is_told_by_how_much(claim: str, monkeypatch: pytest.MonkeyPatch):
    now = time.time()
    monkeypatch.setattr(verification.time, "time", lambda: now)
    error = failure(lambda: verify(sign(**{claim: now + 12.5})))
    assert error.code == "token_invalid"
    assert error.message == (
        f"the token's {claim} is 12.5 s ahead of this server's clock; up to 10 s are allowed"
    )


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_leeway_widens_what_is_allowed_of_other_clocks(use_jwt, claim: str):
    use_jwt(LEEWAY=30)
    assert verify(sign(**{claim: time.time() + 25})).user_id == "7"


def test_end_of_a_token_has_no_leeway_by_default(monkeypatch: pytest.MonkeyPatch):
    now = float(int(time.time()))
    monkeypatch.setattr(verification.time, "time", lambda: now)
    assert verify(sign(exp=now + 0.5)).user_id == "7"
    error = failure(lambda: verify(sign(exp=now)))
    assert (error.code, error.message) == ("token_expired", "the token has expired: its exp was 0 s ago")


@pytest.mark.parametrize(
    ("claims", "named"),
    [({"token_type": "refresh"}, "token_type"), ({"jti": ...}, "jti"), ({"exp": ...}, "exp")],
)
def test_message_names_the_claim(claims: dict[str, Any], named: str):
    assert named in failure(lambda: verify(sign(**claims))).message


def test_id_of_a_token_may_have_another_name(use_jwt):
    use_jwt(JTI_CLAIM="token_id")
    assert verify(sign(jti=..., token_id="t1")).jti == "t1"
    assert failure(lambda: verify(sign())).code == "token_invalid"
    assert verify(issue(user_id="8", role="admin")).user_id == "8"


def _unsigned() -> str:
    header, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (
            {"alg": "none", "typ": "JWT"},
            {"token_type": "access", "jti": "j", "user_id": "7", "role": "admin", "exp": 2**31},
        )
    )
    return f"{header}.{payload}."


@pytest.mark.filterwarnings("ignore:The HMAC key is")
@pytest.mark.parametrize(
    "token",
    [
        *("", "abc", "a.b.c", "..", "\x00", "é.é.é", " "),
        pytest.param(lambda: sign()[:-3] + "AAA", id="wrong signature"),
        pytest.param(lambda: sign(token_type="refresh"), id="refresh token"),
        pytest.param(lambda: sign(token_type=...), id="no type"),
        pytest.param(lambda: sign(jti=...), id="no jti"),
        pytest.param(lambda: sign(exp=...), id="no exp"),
        pytest.param(lambda: sign(exp="soon"), id="odd exp"),
        pytest.param(lambda: sign(exp=10**13), id="exp in the year 300,000"),
        pytest.param(lambda: sign(exp=10**30), id="absurd exp"),
        pytest.param(lambda: sign(exp=10**400), id="exp that is no float"),
        pytest.param(lambda: sign(exp=float("nan")), id="exp that is no number"),
        pytest.param(lambda: sign(exp=True), id="exp that is true"),
        pytest.param(lambda: sign(iat="yesterday"), id="odd iat"),
        pytest.param(lambda: sign(nbf=None), id="no nbf after all"),
        pytest.param(lambda: sign(iat=int(time.time()) + 3600), id="issued in the future"),
        pytest.param(lambda: sign(nbf=int(time.time()) + 3600), id="not valid yet"),
        pytest.param(lambda: jwt.encode({"a": 1}, "x" * 32, algorithm="HS256"), id="another key"),
        pytest.param(
            lambda: jwt.encode(claims(), simplejwt.api_settings.SIGNING_KEY, algorithm="HS384"),
            id="another algorithm",
        ),
        pytest.param(_unsigned, id="alg none"),
    ],
)
def test_token_that_cannot_be_trusted_is_refused(token: str | Callable[[], str]):
    text = token if isinstance(token, str) else token()
    error = failure(lambda: verify(text))
    assert error.code == "token_invalid"
    assert not text.strip() or text not in error.message


@given(st.text(max_size=80))
def test_any_text_is_a_token_or_refused(text: str):
    assert failure(lambda: verify(text)).code == "token_invalid"


@pytest.mark.parametrize(("name", "claim"), [("AUDIENCE", "aud"), ("ISSUER", "iss")])
def test_audience_and_issuer_must_be_the_configured_ones(use_jwt, name: str, claim: str):
    use_jwt(**{name: "realtime"})
    assert verify(sign(**{claim: "realtime"})).user_id == "7"
    assert verify(issue(user_id="8", role="admin")).user_id == "8"
    assert failure(lambda: verify(sign(**{claim: "another"}))).code == "token_invalid"
    assert failure(lambda: verify(sign())).code == "token_invalid"


# --- Keys --------------------------------------------------------------------------------------------


@pytest.fixture
def use_provider(use_jwt, provider: JwksServer) -> JwksServer:
    """Tokens are verified with the keys of this identity provider."""
    use_jwt(ALGORITHM="RS256", SIGNING_KEY="", JWK_URL=provider.url)
    return provider


def _asymmetric(private_key: rsa.RSAPrivateKey, kid: str = "k1", **more: Any) -> str:
    return jwt.encode(claims(**more), private_key, algorithm="RS256", headers={"kid": kid})


def test_token_is_signed_only_where_there_is_a_signing_key(use_jwt, private_key):
    token = _asymmetric(private_key)
    use_jwt(ALGORITHM="RS256", SIGNING_KEY="", VERIFYING_KEY=private_key.public_key())
    assert verify(token).user_id == "7"
    with pytest.raises(ImproperlyConfigured, match="JWT_SIGNING_KEY"):
        issue(user_id="7", role="admin")


def test_public_key_as_a_shared_secret_is_refused(use_jwt, private_key):
    """The classic: an HS256 token signed with the RSA public key, which is public."""
    token = sign()
    use_jwt(ALGORITHM="RS256", SIGNING_KEY="", VERIFYING_KEY=private_key.public_key())
    assert failure(lambda: verify(token)).code == "token_invalid"


@pytest.mark.usefixtures("use_provider")
async def test_key_is_fetched_from_the_jwks_endpoint(private_key):
    assert (await authenticate(_asymmetric(private_key))).user_id == "7"
    with pytest.raises(AuthenticationFailed, match="kid"):
        await authenticate(_asymmetric(private_key, kid="k2"))


async def test_patience_with_the_jwks_endpoint_is_bounded(private_key, use_provider, settings):
    settings.REALTIME = {**settings.REALTIME, "JWKS_TIMEOUT": 0.1}
    with use_provider.hanging(), pytest.raises(AuthenticationFailed) as caught:
        await authenticate(_asymmetric(private_key))
    assert caught.value.code == "unavailable"


async def test_slow_jwks_endpoint_does_not_hold_up_the_event_loop(private_key, use_provider):
    with use_provider.hanging():
        verifying = asyncio.create_task(authenticate(_asymmetric(private_key)))
        await asyncio.sleep(0.01)
    assert (await verifying).user_id == "7"


# --- Tokens that come again ---------------------------------------------------------------------------


@pytest.fixture
def mapped(settings) -> list[Any]:
    """The tokens that were verified, by their ids: what is recognised is not mapped again."""
    settings.REALTIME = {**settings.REALTIME, "CLAIMS": f"{__name__}._note"}
    _noted.clear()
    return _noted


_noted: list[Any] = []


def _note(claims: Mapping[str, Any]) -> Mapping[str, Any]:
    _noted.append(claims["jti"])
    return claims


async def test_token_that_comes_again_is_recognised(mapped: list[Any]):
    token = sign()
    assert await authenticate(token) is await authenticate(token) is verify(token)
    assert mapped == ["j1"]


async def test_token_that_comes_again_after_its_end_has_expired(monkeypatch: pytest.MonkeyPatch):
    token = sign(exp=int(time.time()) + 60)
    await authenticate(token)
    later = time.time() + 61
    monkeypatch.setattr(verification.time, "time", lambda: later)
    assert failure(lambda: verify(token)).code == "token_expired"


async def test_token_that_differs_in_one_character_is_not_recognised():
    token = sign()
    await authenticate(token)
    for place in (5, len(token) // 2, len(token) - 3):
        forged = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        with pytest.raises(AuthenticationFailed):
            await authenticate(forged)


async def test_token_that_was_refused_is_refused_again():
    token = sign(role="nobody")
    for _ in range(2):
        with pytest.raises(AuthenticationFailed):
            await authenticate(token)


async def test_only_so_many_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch, mapped: list[Any]):
    monkeypatch.setattr(verification, "RECOGNISED", 3)
    tokens = [sign(jti=str(number)) for number in range(5)]
    for token in (*tokens, *reversed(tokens[2:])):
        await authenticate(token)
    assert mapped == ["0", "1", "2", "3", "4"]
    await authenticate(tokens[0])
    assert mapped[5:] == ["0"]
