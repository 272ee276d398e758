from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st
from rest_framework_simplejwt import settings as simplejwt
from rest_framework_simplejwt import state
from rest_framework_simplejwt.backends import TokenBackend

from realtime.auth import tokens as authentication
from realtime.auth.tokens import AuthenticationFailed, authenticate, credential, issue, verify
from tests.inprocess import HUB, PATIENCE, PORTAL


def scope(
    *authorization: str, subprotocols: list[str] | None = None, query: str = "", **more: Any
) -> dict[str, Any]:
    return {
        "headers": [(b"host", b"h"), *((b"authorization", value.encode()) for value in authorization)],
        "subprotocols": subprotocols or [],
        "query_string": query.encode(),
        **more,
    }


def failure(work: Callable[[], Any]) -> AuthenticationFailed:
    with pytest.raises(AuthenticationFailed) as caught:
        work()
    return caught.value


@pytest.fixture
def use_jwt(settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`SIMPLE_JWT` changed for one test, as if the process had started with it."""

    def change(**values: Any) -> None:
        settings.SIMPLE_JWT = {**settings.SIMPLE_JWT, **values}
        current = simplejwt.api_settings
        backend = TokenBackend(
            current.ALGORITHM,
            current.SIGNING_KEY,
            current.VERIFYING_KEY,
            current.AUDIENCE,
            current.ISSUER,
            current.JWK_URL,
            current.LEEWAY,
        )
        monkeypatch.setattr(state, "token_backend", backend)
        authentication._backend.cache_clear()

    return change


@pytest.fixture(autouse=True)
def forget_the_backend() -> Iterator[None]:
    yield
    authentication._backend.cache_clear()


def claims(**changes: Any) -> dict[str, Any]:
    """A token's claims with these changed; a claim that is `...` is left out."""
    changed = {
        "token_type": "access",
        "jti": "j1",
        "user_id": "7",
        "role": "attendant",
        "exp": int(time.time()) + 60,
        **changes,
    }
    return {name: value for name, value in changed.items() if value is not ...}


def sign(**changes: Any) -> str:
    return jwt.encode(claims(**changes), simplejwt.api_settings.SIGNING_KEY, algorithm="HS256")


# --- The one credential of a handshake ---------------------------------------------------------------


def test_authorization_header_is_a_credential():
    assert credential(scope("Bearer abc")) == "abc"


def test_scheme_is_case_insensitive():
    assert credential(scope("bEARER  abc ")) == "abc"


def test_subprotocol_is_a_credential():
    assert credential(scope(subprotocols=["realtime.v1", "bearer.abc"])) == "abc"


def test_query_string_is_a_credential_where_it_is_enabled(settings):
    settings.REALTIME = {**settings.REALTIME, "QUERY_TOKEN": True}
    assert credential(scope(query="x=1&token=abc")) == "abc"


def test_query_string_is_no_credential_where_it_is_off(settings):
    settings.REALTIME = {**settings.REALTIME, "QUERY_TOKEN": False}
    assert failure(lambda: credential(scope(query="token=abc"))).code == "token_missing"


def test_no_credential_is_token_missing():
    assert failure(lambda: credential(scope(subprotocols=["realtime.v1"]))).code == "token_missing"


@pytest.mark.parametrize("more", [{"subprotocols": None}, {"query_string": b""}])
def test_server_that_leaves_out_optional_parts_of_the_scope_is_understood(more: dict[str, Any]):
    assert credential({"headers": [(b"authorization", b"Bearer abc")], **more}) == "abc"


@pytest.mark.parametrize(
    "given_twice",
    [
        scope("Bearer abc", "Bearer abc"),
        scope("Bearer abc", subprotocols=["bearer.abc"]),
        scope(subprotocols=["bearer.abc", "bearer.def"]),
        scope("Bearer abc", query="token=abc"),
        scope(query="token=abc&token=def"),
    ],
)
def test_more_than_one_credential_is_refused(settings, given_twice: dict[str, Any]):
    settings.REALTIME = {**settings.REALTIME, "QUERY_TOKEN": True}
    assert failure(lambda: credential(given_twice)).code == "token_invalid"


@pytest.mark.parametrize("value", ["Basic abc", "Bearer", "Bearer ", "abc", "", "Token abc", "Bearerabc"])
def test_malformed_authorization_is_refused(value: str):
    assert failure(lambda: credential(scope(value))).code == "token_invalid"


def test_enormous_token_is_refused_before_it_is_read():
    assert failure(lambda: credential(scope("Bearer " + "x" * 8193))).code == "token_invalid"


def test_query_string_of_a_thousand_fields_is_refused(settings):
    settings.REALTIME = {**settings.REALTIME, "QUERY_TOKEN": True}
    assert failure(lambda: credential(scope(query="&".join(["a=1"] * 1000)))).code == "token_invalid"


@given(st.binary(max_size=60), st.binary(max_size=60), st.lists(st.text(max_size=20), max_size=3))
def test_any_handshake_has_a_credential_or_fails(authorization: bytes, query: bytes, subprotocols: list[str]):
    try:
        result = credential(
            {
                "headers": [(b"authorization", authorization)],
                "query_string": query,
                "subprotocols": subprotocols,
            }
        )
    except AuthenticationFailed as error:
        result = error.code
    assert isinstance(result, str)


# --- Claims ------------------------------------------------------------------------------------------


async def test_claims_become_the_principal():
    before = int(time.time())
    token = issue(user_id="7", role="customer", name="Ana", groups=["a", "b"], threads=["42", "43"], ttl=60)
    principal = await authenticate(token)
    assert (principal.user_id, principal.role, principal.name) == ("7", "customer", "Ana")
    assert principal.groups == ("a", "b")
    assert principal.threads == {"42", "43"}
    assert before + 60 <= principal.expires_at <= time.time() + 60
    assert len(principal.jti) == 32


@pytest.mark.parametrize("claim", [..., None])
def test_groups_are_attendants_unless_the_token_says_otherwise(claim: Any):
    assert verify(sign(groups=claim)).groups == ("attendants",)


def test_token_may_name_no_groups_at_all():
    assert verify(sign(groups=[])).groups == ()


def test_group_named_twice_counts_once_and_order_is_kept():
    assert verify(sign(groups=["b", "a", "b"])).groups == ("b", "a")


@pytest.mark.parametrize("claim", [..., None, []])
def test_threads_are_none_unless_the_token_names_them(claim: Any):
    assert verify(sign(threads=claim)).threads == frozenset()


def test_whole_numbers_are_ids():
    principal = verify(sign(user_id=7, groups=[1, "a"], threads=[42]))
    assert (principal.user_id, principal.groups, principal.threads) == ("7", ("1", "a"), {"42"})


@pytest.mark.parametrize("claim", [..., None, ""])
def test_name_may_be_missing(claim: Any):
    assert verify(sign(name=claim)).name == ""


def test_long_name_is_cut():
    assert verify(sign(name="é" * 1000)).name == "é" * 256


@pytest.mark.parametrize(
    "claims",
    [
        *({"role": value} for value in (..., None, "", "root", "Attendant", 7, ["attendant"])),
        *({"user_id": value} for value in (..., None, "", "a b", "x" * 65, 1.5, True, ["7"])),
        *({"groups": value} for value in ("attendants", {"a": 1}, ["a b"], [None], [["a"]], 7)),
        *({"threads": value} for value in ("42", ["thread:42"], [1.5])),
        *({"name": value} for value in (7, ["Ana"], {"first": "Ana"})),
    ],
    ids=repr,
)
def test_odd_claim_is_refused(claims: dict[str, Any]):
    assert failure(lambda: verify(sign(**claims))).code == "token_invalid"


def test_user_id_claim_follows_simplejwt(use_jwt):
    use_jwt(USER_ID_CLAIM="sub")
    assert verify(sign(user_id=..., sub="9")).user_id == "9"
    assert verify(issue(user_id="8", role="admin")).user_id == "8"
    assert failure(lambda: verify(sign(user_id="7"))).code == "token_invalid"


@pytest.mark.parametrize(
    ("role", "namespace", "may"),
    [
        ("attendant", HUB, True),
        ("admin", HUB, True),
        ("customer", HUB, False),
        ("attendant", PORTAL, False),
        ("admin", PORTAL, False),
        ("customer", PORTAL, True),
    ],
)
def test_role_belongs_in_one_namespace(role: str, namespace: str, may: bool):
    assert verify(sign(role=role)).may_enter(namespace) is may


def test_roles_are_configurable(settings):
    settings.REALTIME = {**settings.REALTIME, "HUB_ROLES": ["agent"]}
    assert verify(sign(role="agent")).may_enter(HUB)
    assert failure(lambda: verify(sign(role="attendant"))).code == "token_invalid"


# --- Signatures and times ----------------------------------------------------------------------------


def test_expired_token_is_token_expired():
    assert failure(lambda: verify(sign(exp=int(time.time()) - 1))).code == "token_expired"


def test_leeway_keeps_an_expired_token_good_for_a_while(use_jwt):
    use_jwt(LEEWAY=30)
    assert authentication.leeway() == 30
    assert verify(sign(exp=int(time.time()) - 10)).user_id == "7"
    assert failure(lambda: verify(sign(exp=int(time.time()) - 40))).code == "token_expired"


def test_without_leeway_there_is_none():
    assert authentication.leeway() == 0


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_token_of_a_clock_that_is_a_little_ahead_is_good(claim: str):
    assert verify(sign(**{claim: time.time() + 8})).user_id == "7"


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_token_of_a_clock_that_is_far_ahead_is_told_by_how_much(claim: str, monkeypatch: pytest.MonkeyPatch):
    now = time.time()
    monkeypatch.setattr(authentication.time, "time", lambda: now)
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
    monkeypatch.setattr(authentication.time, "time", lambda: now)
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


@pytest.fixture(scope="module")
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def jwks(private_key: rsa.RSAPrivateKey) -> Iterator[tuple[str, threading.Event]]:
    """The URL of an identity provider's keys, and whether it answers at the moment."""
    key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private_key.public_key()))
    body = json.dumps({"keys": [{**key, "kid": "k1", "use": "sig", "alg": "RS256"}]}).encode()
    answers = threading.Event()
    answers.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.wait()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/jwks", answers
        answers.set()
        server.shutdown()
        thread.join()


def _asymmetric(private_key: rsa.RSAPrivateKey, kid: str = "k1", **more: Any) -> str:
    return jwt.encode(claims(**more), private_key, algorithm="RS256", headers={"kid": kid})


def test_token_is_signed_only_where_there_is_a_signing_key(use_jwt, private_key):
    token = _asymmetric(private_key)
    use_jwt(ALGORITHM="RS256", SIGNING_KEY="", VERIFYING_KEY=private_key.public_key())
    assert verify(token).user_id == "7"
    with pytest.raises(ImproperlyConfigured, match="JWT_SIGNING_KEY"):
        issue(user_id="7", role="admin")


def test_public_key_as_a_shared_secret_is_refused(use_jwt, private_key):
    """The classic: an HS256 token signed with the RSA public key, which everybody has."""
    token = sign()
    use_jwt(ALGORITHM="RS256", SIGNING_KEY="", VERIFYING_KEY=private_key.public_key())
    assert failure(lambda: verify(token)).code == "token_invalid"


async def test_key_is_fetched_from_the_jwks_endpoint(use_jwt, private_key, jwks):
    use_jwt(ALGORITHM="RS256", SIGNING_KEY="", JWK_URL=jwks[0])
    assert (await authenticate(_asymmetric(private_key))).user_id == "7"


async def test_half_of_a_character_in_a_claim_is_replaced_however_the_key_is_had(use_jwt, private_key, jwks):
    use_jwt(ALGORITHM="RS256", SIGNING_KEY="", JWK_URL=jwks[0])
    principal = await authenticate(_asymmetric(private_key, name="Ana \ud83d"))
    assert principal.name == "Ana \ufffd"


async def test_unknown_key_of_the_jwks_endpoint_is_refused(use_jwt, private_key, jwks):
    use_jwt(ALGORITHM="RS256", SIGNING_KEY="", JWK_URL=jwks[0])
    with pytest.raises(AuthenticationFailed):
        await authenticate(_asymmetric(private_key, kid="k2"))


async def test_patience_with_the_jwks_endpoint_is_bounded(use_jwt, private_key, jwks, settings):
    token = _asymmetric(private_key)
    settings.REALTIME = {**settings.REALTIME, "JWKS_TIMEOUT": 0.1}
    use_jwt(ALGORITHM="RS256", SIGNING_KEY="", JWK_URL=jwks[0])
    jwks[1].clear()
    with pytest.raises(AuthenticationFailed):
        await authenticate(token)


async def test_slow_jwks_endpoint_does_not_hold_up_the_event_loop(use_jwt, private_key, jwks, settings):
    settings.REALTIME = {**settings.REALTIME, "JWKS_TIMEOUT": PATIENCE}
    use_jwt(ALGORITHM="RS256", SIGNING_KEY="", JWK_URL=jwks[0])
    jwks[1].clear()
    verifying = asyncio.create_task(authenticate(_asymmetric(private_key)))
    await asyncio.sleep(0.01)
    jwks[1].set()  # nobody would, if the loop were held up
    assert (await verifying).user_id == "7"


# --- Tokens that come again ---------------------------------------------------------------------------


async def test_token_that_comes_again_is_recognised(monkeypatch: pytest.MonkeyPatch):
    token = sign()
    principal = await authenticate(token)
    monkeypatch.setattr(authentication, "verify", None)  # would fail
    assert await authenticate(token) is principal


async def test_token_that_comes_again_after_its_end_has_expired(monkeypatch: pytest.MonkeyPatch):
    token = sign(exp=int(time.time()) + 60)
    await authenticate(token)
    later = time.time() + 61
    monkeypatch.setattr(authentication.time, "time", lambda: later)
    assert authentication._recognise(token) is None


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


async def test_only_so_many_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(authentication, "VERIFIED", 3)
    tokens = [sign(jti=str(number)) for number in range(5)]
    for token in tokens:
        await authenticate(token)
    assert [authentication._recognise(token) is not None for token in tokens] == [False] * 2 + [True] * 3
