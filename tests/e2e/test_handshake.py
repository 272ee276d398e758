"""Who gets in, who does not, and what they are told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import random
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import RemoteDisconnected
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.e2e.harness import Client, Stack, eventually, free_port, unique
from tests.e2e.jwks_server import JwksServer

ORIGIN = "http://app.test"
"""The one that the stacks allow."""


def bearer(token: str | bytes) -> tuple[str, bytes]:
    return ("Authorization", b"Bearer " + (token.encode() if isinstance(token, str) else token))


def subprotocols(*names: str) -> tuple[str, str]:
    return ("Sec-WebSocket-Protocol", ", ".join(names))


def customer(stack: Stack, **claims: Any) -> str:
    return stack.sign(role="customer", **claims)


def unsigned(algorithm: str, **claims: Any) -> str:
    """A token of the algorithm `none`, however it is spelt."""
    payload = {
        "token_type": "access",
        "jti": uuid4().hex,
        "user_id": "7",
        "role": "attendant",
        "exp": int(time.time()) + 3600,
        **claims,
    }
    parts = [json.dumps(part).encode() for part in ({"alg": algorithm, "typ": "JWT"}, payload)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + "."


# --- Three credential sources ----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/hub/", "/hub"])
async def test_token_in_the_authorization_header_opens_the_hub(stack: Stack, path: str):
    assert (await stack.handshake(path, token=stack.sign())).status == 101


@pytest.mark.parametrize("path", ["/portal/", "/portal"])
async def test_token_in_the_authorization_header_opens_the_portal(stack: Stack, path: str):
    assert (await stack.handshake(path, token=customer(stack))).status == 101


async def test_scheme_of_the_authorization_header_is_case_insensitive(stack: Stack):
    assert (await stack.handshake(headers=[("Authorization", f"bearer {stack.sign()}")])).status == 101


async def test_token_as_a_subprotocol_is_never_answered_back(stack: Stack):
    token = stack.sign()
    response = await stack.handshake(headers=[subprotocols("realtime.v1", f"bearer.{token}")])
    assert response.status == 101
    assert response.headers["sec-websocket-protocol"] == "realtime.v1"
    assert not any(token in value for value in response.headers.values())


async def test_a_browser_like_client_agrees_on_realtime_v1(stack: Stack):
    async with connect(
        stack.url("hub"), subprotocols=["realtime.v1", f"bearer.{stack.sign()}"], origin=ORIGIN
    ) as websocket:
        assert websocket.subprotocol == "realtime.v1"
        assert json.loads(await websocket.recv())["event"] == "connection:ready"


async def test_subprotocol_with_authorization_header_is_still_agreed_on(stack: Stack):
    response = await stack.handshake(token=stack.sign(), headers=[subprotocols("realtime.v1")])
    assert (response.status, response.headers["sec-websocket-protocol"]) == (101, "realtime.v1")


async def test_token_in_the_query_string_is_accepted_while_debugging(stack: Stack):
    assert (await stack.handshake(f"/hub/?token={stack.sign()}")).status == 101
    assert (await stack.handshake(f"/hub?x=1&token={stack.sign()}")).status == 101


def lines_with(text: str, logs: str) -> list[str]:
    return [line for line in logs.splitlines() if text in line]


async def test_query_string_of_a_handshake_is_never_logged(stack: Stack):
    marker = unique("marker")
    await stack.handshake(f"/hub/?token={stack.sign()}&x={marker}")
    await stack.handshake(f"/hub/?token=garbage{marker}")
    await stack.handshake(f"/nowhere/?x={marker}")
    assert not lines_with(marker, stack.logs)


async def test_query_string_of_a_request_is_never_logged(uvicorn_stack: Stack):
    """daphne's own access log has it; ours do not."""
    marker = unique("marker")
    for path in ("/hub/", "/nowhere", "/healthz", "/readyz"):
        await uvicorn_stack.http("GET", f"{path}?token={marker}")
        await uvicorn_stack.http("POST", f"{path}?token={marker}")
    assert not lines_with(marker, uvicorn_stack.logs)


@pytest.mark.parametrize(
    "sources",
    [
        ("header", "subprotocol"),
        ("header", "query"),
        ("subprotocol", "query"),
        ("header", "header"),
        ("subprotocol", "subprotocol"),
        ("query", "query"),
        ("header", "subprotocol", "query"),
    ],
    ids="+".join,
)
async def test_more_than_one_credential_is_refused(stack: Stack, sources: tuple[str, ...]):
    headers: list[tuple[str, str | bytes]] = [
        bearer(stack.sign()) for source in sources if source == "header"
    ]
    if bearers := [f"bearer.{stack.sign()}" for source in sources if source == "subprotocol"]:
        headers.append(subprotocols("realtime.v1", *bearers))
    query = "&".join(f"token={stack.sign()}" for source in sources if source == "query")
    response = await stack.handshake(f"/hub/?{query}" if query else "/hub/", headers)
    stack.assert_refused(response, 401, "token_invalid")


async def test_no_credential_is_told_as_missing(stack: Stack):
    stack.assert_refused(await stack.handshake(), 401, "token_missing")
    stack.assert_refused(await stack.handshake("/portal/"), 401, "token_missing")
    response = await stack.handshake(headers=[subprotocols("realtime.v1")])
    stack.assert_refused(response, 401, "token_missing")


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer",
        b"Bearer ",
        b"Bearer  ",
        b"Basic YTpi",
        b"bearer",
        b"Bearer a b",
        b"Bearer a.b.c",
        b"Bearer ..",
        b"Bearer \xff\xfe\xe9",
        b"Bearer eyJhbGciOiJIUzI1NiJ9.e30.\xe9",
        b"\xc3\xa9 x",
        b"\xff",
        b"Bearer " + b"a" * 8000,
        b"Bearer " + b"." * 7000,
        b"Bearer null",
        b"Digest username=x",
    ],
    ids=lambda value: repr(value[:24]),
)
async def test_garbage_in_the_authorization_header_is_refused(stack: Stack, value: bytes):
    response = await stack.handshake(headers=[("Authorization", value)])
    if stack.server == "daphne":
        assert response.status in {400, 403}
    else:
        assert response.status == 401
        assert response.error["code"] in {"token_invalid", "token_missing"}


async def test_empty_token_of_any_source_is_refused(stack: Stack):
    for response in (
        await stack.handshake("/hub/?token="),
        await stack.handshake(headers=[subprotocols("realtime.v1", "bearer.")]),
        await stack.handshake(headers=[("Authorization", "")]),
    ):
        assert response.status in ({403} if stack.server == "daphne" else {401})


# --- Tokens that are not good ----------------------------------------------------------------------


async def test_expired_token_is_told_as_expired(stack: Stack):
    token = stack.sign(exp=int(time.time()) - 5)
    stack.assert_refused(await stack.handshake(token=token), 401, "token_expired")


async def test_wrong_signature_is_refused(stack: Stack):
    token = stack.sign(key="somebody else's key, of 32 bytes or more")
    stack.assert_refused(await stack.handshake(token=token), 401, "token_invalid")


async def test_claims_changed_after_signing_are_refused(stack: Stack):
    header, _, signature = stack.sign(role="customer").split(".")
    forged = stack.sign().split(".")[1]
    response = await stack.handshake(token=f"{header}.{forged}.{signature}")
    stack.assert_refused(response, 401, "token_invalid")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
async def test_algorithm_that_is_not_configured_is_refused(stack: Stack, algorithm: str):
    key = "x" * 64
    token = stack.sign(algorithm=algorithm, key=key)
    stack.assert_refused(await stack.handshake(token=token), 401, "token_invalid")
    same_key = stack.sign(algorithm=algorithm, key=stack.env["JWT_SIGNING_KEY"].ljust(64)[:64])
    stack.assert_refused(await stack.handshake(token=same_key), 401, "token_invalid")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
async def test_unsigned_token_is_refused(stack: Stack, algorithm: str):
    stack.assert_refused(await stack.handshake(token=unsigned(algorithm)), 401, "token_invalid")


@pytest.mark.parametrize("header", [{"kid": "../../dev/null"}, {"crit": ["x"], "x": 1}, {"alg": 5}])
async def test_odd_token_header_does_no_harm(stack: Stack, header: dict[str, Any]):
    raw = json.dumps({"alg": "HS256", "typ": "JWT", **header}).encode()
    _, payload, signature = stack.sign().split(".")
    token = f"{base64.urlsafe_b64encode(raw).decode().rstrip('=')}.{payload}.{signature}"
    stack.assert_refused(await stack.handshake(token=token), 401, "token_invalid")


@pytest.mark.parametrize("token_type", ["refresh", "sliding", "", None, 5])
async def test_refresh_token_is_not_an_access_token(stack: Stack, token_type: object):
    token = stack.sign(token_type=token_type)
    stack.assert_refused(await stack.handshake(token=token), 401, "token_invalid")


@pytest.mark.parametrize("claim", ["role", "user_id", "token_type", "exp", "jti"])
async def test_token_without_a_needed_claim_is_refused(stack: Stack, claim: str):
    token = stack.sign(without=[claim])
    stack.assert_refused(await stack.handshake(token=token), 401, "token_invalid")


ODD_IDS = ["", "a b", "a:b", "é", "x" * 65, 1.5, True, None, [], ["7"], {}, "٣", "a\n", "*"]


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        *(("role", value) for value in ("", "Attendant", "root", 5, None, ["attendant"], {"a": 1}, True)),
        *(("user_id", value) for value in (*ODD_IDS, 10**70)),
        *(("groups", value) for value in ("attendants", 5, {"a": 1}, True)),
        *(("threads", value) for value in ("42", 42, {"42": 1}, False, [[1]], [1.5], ["a b"], ["x" * 65])),
        ("name", 5),
        ("name", ["Ana"]),
    ],
    ids=lambda value: repr(value)[:24],
)
async def test_odd_claim_is_refused(stack: Stack, claim: str, value: object):
    token = stack.sign(**{claim: value})
    stack.assert_refused(await stack.handshake(token=token), 401, "token_invalid")


@pytest.mark.parametrize(
    "exp",
    [1e300, -1, 0, -1e300, "tomorrow", "", None, [], {}, float("inf"), float("nan"), 10**30, True, False],
    ids=repr,
)
async def test_absurd_expiry_is_refused_or_harmless(stack: Stack, exp: object):
    response = await stack.handshake(token=stack.sign(exp=exp))
    if stack.server == "daphne":
        assert response.status == 403
    else:
        assert response.status == 401
        assert response.error["code"] in {"token_invalid", "token_expired"}


@pytest.mark.parametrize("exp", [2**31, 2**33, 253402300799], ids=repr)
async def test_distant_expiry_is_a_good_one(stack: Stack, exp: int):
    async with stack.client("hub", token=stack.sign(exp=exp)) as client:
        await client.call("heartbeat")


async def test_token_of_the_future_is_refused(stack: Stack):
    token = stack.sign(nbf=int(time.time()) + 1000)
    stack.assert_refused(await stack.handshake(token=token), 401, "token_invalid")


async def test_whole_numbers_in_claims_are_ids(stack: Stack):
    token = stack.sign(user_id=70000001, groups=[5, "sales"])
    async with stack.client("hub", token=token) as client:
        assert client.ready["user_id"] == "70000001"
        assert set(client.ready["rooms"]) == {"user:70000001", "presence:5", "presence:sales"}


@pytest.mark.parametrize(
    "name", [None, "", "Ana", "Ána\u0000\ud800".encode(errors="ignore").decode(), "x" * 500]
)
async def test_any_name_is_welcome(stack: Stack, name: str | None):
    async with stack.client("hub", token=stack.sign(user_id=unique("u"), name=name)) as client:
        await client.call("heartbeat")


async def test_long_token_is_read_as_it_is(stack: Stack):
    threads = [unique("thread-with-a-rather-long-id-") for _ in range(110)]
    token = customer(stack, user_id=unique("u"), threads=threads)
    assert 6000 < len(token) < 7000
    async with stack.client("portal", token=token) as client:
        await client.call("join:thread", {"thread_id": threads[-1]})
    assert (await stack.handshake("/portal/", [subprotocols("realtime.v1", f"bearer.{token}")])).status == 101


@pytest.mark.parametrize("length", [8_000, 8_192, 9_000, 20_000])
async def test_endless_token_is_refused_without_a_trace(stack: Stack, length: int):
    token = (stack.sign() + "A" * length)[:length]
    with contextlib.suppress(RemoteDisconnected):  # daphne's whole answer to more than 16 KiB of headers
        assert (await stack.handshake(token=token)).status in {400, 401, 403, 431}
    assert (await stack.handshake(token=stack.sign())).status == 101


async def test_unknown_path_is_not_found(stack: Stack):
    for path in ("/", "/nowhere/", "/hub/x", "/hub//", "/Hub/", "/hubs/", "/healthz", "/portal/hub/"):
        stack.assert_refused(await stack.handshake(path, token=stack.sign()), 404, "not_found")


# --- Roles -----------------------------------------------------------------------------------------


async def test_customer_may_not_enter_the_hub(stack: Stack):
    stack.assert_refused(await stack.handshake("/hub/", token=customer(stack)), 403, "forbidden_role")


@pytest.mark.parametrize("role", ["attendant", "admin"])
async def test_the_team_may_not_enter_the_portal(stack: Stack, role: str):
    token = stack.sign(role=role)
    stack.assert_refused(await stack.handshake("/portal/", token=token), 403, "forbidden_role")
    assert (await stack.handshake("/hub/", token=token)).status == 101


# --- Origins ---------------------------------------------------------------------------------------


async def test_listed_origin_and_no_origin_are_allowed(stack: Stack):
    assert (await stack.handshake(token=stack.sign(), headers=[("Origin", ORIGIN)])).status == 101
    assert (await stack.handshake(token=stack.sign())).status == 101


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.test",
        "https://app.test",
        "http://app.test:8080",
        "http://app.test.evil.test",
        "http://evilapp.test",
        "http://user@app.test",
        "http://app.test@evil.test",
        "http://app.test/path",
        "http://app.test/",
        "null",
        "http://[",
        "http://[::1",
        "//app.test",
        "app.test",
        "*",
        "http://",
        "://",
        b"http://\xff\xfe",
        b"http://app.test\xc2\xa0",
        "http://" + "a" * 7000,
        "http://app.test:abc",
        "file://",
    ],
    ids=lambda value: repr(value[:32]),
)
async def test_other_origin_is_forbidden(stack: Stack, origin: str | bytes):
    response = await stack.handshake(token=stack.sign(), headers=[("Origin", origin)])
    if stack.server == "daphne":
        assert response.status in {400, 403}  # a malformed Origin is refused by its WebSocket library
    else:
        stack.assert_refused(response, 403, "forbidden_origin")


async def test_two_origins_are_refused_even_if_both_are_listed(stack: Stack):
    for origins in ((ORIGIN, ORIGIN), (ORIGIN, "http://evil.test"), ("http://evil.test", ORIGIN)):
        headers = [("Origin", origin) for origin in origins]
        assert (await stack.handshake(token=stack.sign(), headers=headers)).status in {400, 403}


# --- The verdict for browsers ----------------------------------------------------------------------


async def test_verdict_is_204_where_a_handshake_would_be_accepted(stack: Stack):
    for path in ("/hub/", "/hub"):
        assert (await stack.http("GET", path, [bearer(stack.sign())])).status == 204
    for path in ("/portal/", "/portal"):
        response = await stack.http("GET", path, [bearer(customer(stack))])
        assert (response.status, response.body) == (204, b"")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "token_missing"),
        (401, "token_invalid"),
        (401, "token_expired"),
        (403, "forbidden_role"),
        (403, "forbidden_origin"),
    ],
)
async def test_verdict_says_what_a_handshake_would_be_told(stack: Stack, status: int, code: str):
    headers = {
        "token_missing": [],
        "token_invalid": [bearer("a.b.c")],
        "token_expired": [bearer(stack.sign(exp=int(time.time()) - 5))],
        "forbidden_role": [bearer(customer(stack))],
        "forbidden_origin": [bearer(stack.sign()), ("Origin", "http://evil.test")],
    }[code]
    verdict = await stack.http("GET", "/hub/", headers)
    assert (verdict.status, verdict.error["code"]) == (status, code)
    assert verdict.headers["content-type"] == "application/json"
    handshake = await stack.handshake("/hub/", headers)
    stack.assert_refused(handshake, status, code)
    if stack.server == "uvicorn":
        assert handshake.body == verdict.body


@pytest.mark.parametrize("path", ["/hub/", "/portal"])
async def test_verdict_may_be_read_by_an_allowed_origin(stack: Stack, path: str):
    for headers in ([bearer(stack.sign())], [bearer(customer(stack))], [], [bearer("a.b.c")]):
        response = await stack.http("GET", path, [*headers, ("Origin", ORIGIN)])
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "origin" in response.headers["vary"].lower()


async def test_preflight_of_the_verdict_allows_the_authorization_header(stack: Stack):
    asked = [
        ("Origin", ORIGIN),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "authorization"),
    ]
    for path in ("/hub/", "/portal/"):
        response = await stack.http("OPTIONS", path, asked)
        assert response.status in {200, 204}
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in response.headers["access-control-allow-headers"].lower()


@pytest.mark.parametrize("origin", ["http://evil.test", "null", "http://[", b"http://\xff", "*"], ids=repr)
async def test_verdict_may_not_be_read_by_another_origin(stack: Stack, origin: str | bytes):
    for method in ("GET", "OPTIONS"):
        response = await stack.http(method, "/hub/", [bearer(stack.sign()), ("Origin", origin)])
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_verdict_is_only_for_asking(stack: Stack, method: str):
    assert (await stack.http(method, "/hub/", [bearer(stack.sign())])).status == 405


# --- Other settings --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict_stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """As in production: no debugging, an audience, an issuer, some leeway, another claim for the user."""
    stack = Stack(
        tmp_path_factory.mktemp("strict"),
        redis_url,
        DEBUG="0",
        SECRET_KEY="a production secret, long enough to be one: 0123456789abcdef",
        ALLOWED_HOSTS="127.0.0.1",
        ALLOWED_ORIGINS="https://app.test,null",
        JWT_AUDIENCE="chat, sockets",
        JWT_ISSUER="https://id.test",
        JWT_LEEWAY="30",
    )
    try:
        stack.start_sockets()
        yield stack
    finally:
        stack.stop()
    stack.assert_calm()


def strict_token(stack: Stack, **claims: Any) -> str:
    return stack.sign(**{"aud": "sockets", "iss": "https://id.test", **claims})


@pytest.mark.parametrize("audience", ["chat", "sockets", ["others", "chat"]])
async def test_each_audience_of_the_list_is_accepted(strict_stack: Stack, audience: Any):
    token = strict_token(strict_stack, aud=audience)
    assert (await strict_stack.handshake(token=token)).status == 101


async def test_list_of_audiences_is_no_audience(strict_stack: Stack):
    token = strict_token(strict_stack, aud="chat, sockets")
    strict_stack.assert_refused(await strict_stack.handshake(token=token), 401, "token_invalid")


async def test_query_token_is_off_in_production(strict_stack: Stack):
    token = strict_token(strict_stack)
    assert (await strict_stack.handshake(token=token)).status == 101
    response = await strict_stack.handshake(f"/hub/?token={token}")
    strict_stack.assert_refused(response, 401, "token_missing")
    verdict = await strict_stack.http("GET", f"/hub/?token={token}")
    assert (verdict.status, verdict.error["code"]) == (401, "token_missing")


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "others"},
        {"aud": None},
        {"aud": []},
        {"aud": ["others"]},
        {"iss": "https://evil.test"},
        {"iss": "https://id.test/"},
    ],
    ids=repr,
)
async def test_wrong_audience_or_issuer_is_refused(strict_stack: Stack, claims: dict[str, Any]):
    response = await strict_stack.handshake(token=strict_token(strict_stack, **claims))
    strict_stack.assert_refused(response, 401, "token_invalid")


@pytest.mark.parametrize("claim", ["aud", "iss"])
async def test_missing_audience_or_issuer_is_refused(strict_stack: Stack, claim: str):
    token = strict_token(strict_stack, without=[claim])
    strict_stack.assert_refused(await strict_stack.handshake(token=token), 401, "token_invalid")


async def test_one_of_several_audiences_is_enough(strict_stack: Stack):
    token = strict_token(strict_stack, aud=["others", "sockets"])
    assert (await strict_stack.handshake(token=token)).status == 101


async def test_leeway_keeps_a_token_good_for_a_while(strict_stack: Stack):
    now = int(time.time())
    within = await strict_stack.handshake(token=strict_token(strict_stack, exp=now - 10))
    assert within.status == 101
    beyond = await strict_stack.handshake(token=strict_token(strict_stack, exp=now - 40))
    strict_stack.assert_refused(beyond, 401, "token_expired")


async def test_null_origin_is_allowed_where_it_is_listed(strict_stack: Stack):
    token = strict_token(strict_stack)
    assert (await strict_stack.handshake(token=token, headers=[("Origin", "null")])).status == 101
    assert (await strict_stack.handshake(token=token, headers=[("Origin", "https://app.test")])).status == 101
    response = await strict_stack.handshake(token=token, headers=[("Origin", "http://app.test")])
    strict_stack.assert_refused(response, 403, "forbidden_origin")


async def test_not_found_in_production_tells_nothing(strict_stack: Stack):
    response = await strict_stack.http("GET", "/nowhere?secret=1")
    assert response.status == 404
    assert b"urlpatterns" not in response.body
    assert b"secret" not in response.body


# --- Asymmetric keys -------------------------------------------------------------------------------


def private_pem(key: Any) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def rsa_key() -> Any:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Keyed:
    """Socket servers that can verify but not sign, one an algorithm, and one that asks a key server."""

    def __init__(self, stack: Stack, jwks: JwksServer) -> None:
        self.stack = stack
        self.jwks = jwks
        self.private = {
            "RS256": rsa_key(),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        }
        self.ports = {name: free_port() for name in (*self.private, "JWKS")}

    def start(self) -> None:
        for name, key in self.private.items():
            self._start(name, JWT_ALGORITHM=name, JWT_VERIFYING_KEY=public_pem(key))
        self._start("JWKS", JWT_ALGORITHM="RS256", JWT_JWK_URL=self.jwks.url)
        for process in self.stack.processes:
            process.wait_for("ready")

    def _start(self, name: str, **env: str) -> None:
        self.stack.start(
            "runsockets", ready="", SOCKETS_PORT=str(self.ports[name]), JWT_SIGNING_KEY="", **env
        )

    async def ask_jwks(self, key: Any, kid: str | None, **claims: Any) -> int:
        """The status of a handshake with a token of this key."""
        token = self.stack.sign(
            key=key, algorithm="RS256", header={"kid": kid} if kid else None, user_id=unique("u"), **claims
        )
        return (await self.stack.handshake(token=token, port=self.ports["JWKS"])).status


@pytest.fixture(scope="module")
def keyed(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    jwks = JwksServer()
    stack = Stack(tmp_path_factory.mktemp("keyed"), redis_url)
    try:
        keyed = Keyed(stack, jwks)
        keyed.start()
        yield keyed
    finally:
        stack.stop()
        jwks.stop()
    stack.assert_calm()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_public_key_is_enough_to_verify(keyed: Keyed, algorithm: str):
    stack, port = keyed.stack, keyed.ports[algorithm]
    good = stack.sign(key=keyed.private[algorithm], algorithm=algorithm)
    assert (await stack.handshake(token=good, port=port)).status == 101
    forger = {"RS256": rsa_key, "ES256": lambda: ec.generate_private_key(ec.SECP256R1())}.get(
        algorithm, ed25519.Ed25519PrivateKey.generate
    )()
    forged = stack.sign(key=forger, algorithm=algorithm)
    stack.assert_refused(await stack.handshake(token=forged, port=port), 401, "token_invalid")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_public_key_is_no_shared_secret(keyed: Keyed, algorithm: str):
    stack, port = keyed.stack, keyed.ports[algorithm]
    now = int(time.time())
    claims = {"token_type": "access", "jti": "x", "user_id": "7", "role": "admin", "exp": now + 60}
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    pem = public_pem(keyed.private[algorithm]).encode()
    for secret in (pem, pem.strip(), b""):
        signature = hmac.new(secret, signed, hashlib.sha256).digest()
        token = (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()
        stack.assert_refused(await stack.handshake(token=token, port=port), 401, "token_invalid")
    for other in ("none", "HS256"):
        response = await stack.handshake(token=unsigned(other), port=port)
        stack.assert_refused(response, 401, "token_invalid")


async def test_key_server_decides_which_keys_count(keyed: Keyed):
    ours, kid, _ = await jwks_client(keyed)
    forger = rsa_key()
    assert await keyed.ask_jwks(ours, kid) == 101
    assert await keyed.ask_jwks(forger, kid) == 401
    assert await keyed.ask_jwks(forger, "unheard-of") == 401
    assert await keyed.ask_jwks(forger, None) == 401


async def test_rotated_key_is_soon_accepted_and_the_old_one_is_not(keyed: Keyed):
    old, old_kid, _ = await jwks_client(keyed)
    await jwks_client(keyed)
    assert await keyed.ask_jwks(old, old_kid) == 401


async def jwks_client(keyed: Keyed) -> tuple[Any, str, str]:
    """A good key that the server has already seen."""
    kid, key = unique("k"), rsa_key()
    keyed.jwks.keys = {kid: key}

    async def accepted() -> bool:
        return await keyed.ask_jwks(key, kid) == 101

    await eventually(accepted)
    return key, kid, keyed.stack.sign(key=key, algorithm="RS256", header={"kid": kid}, user_id=unique("u"))


async def test_failing_key_server_is_no_reason_to_call_a_token_invalid(keyed: Keyed):
    key, kid, token = await jwks_client(keyed)
    new_kid, new_key = unique("k"), rsa_key()
    async with keyed.stack.client("hub", token=token, port=keyed.ports["JWKS"]) as other:
        with keyed.jwks.failing():

            async def unavailable() -> bool:  # (401 as long as the keys were fetched a moment ago)
                return await keyed.ask_jwks(new_key, new_kid) == 503

            await eventually(unavailable)
            unknown = keyed.stack.sign(key=new_key, algorithm="RS256", header={"kid": new_kid})
            refusal = await keyed.stack.handshake(token=unknown, port=keyed.ports["JWKS"])
            keyed.stack.assert_refused(refusal, 503, "unavailable")
            assert float(refusal.headers["retry-after"]) > 0
            assert (await other.refused("auth:refresh", {"token": unknown}))["code"] == "unavailable"
            assert await keyed.ask_jwks(key, kid) == 101
            await other.call("heartbeat")
        keyed.jwks.keys[new_kid] = new_key

        async def accepted() -> bool:
            return await keyed.ask_jwks(new_key, new_kid) == 101

        await eventually(accepted)


async def ask_in_vain(keyed: Keyed) -> asyncio.Task[int]:
    """A handshake that waits for the hanging key server."""
    while True:
        task = asyncio.create_task(keyed.ask_jwks(rsa_key(), unique("k")))
        done, _ = await asyncio.wait([task], timeout=0.5)
        if not done:
            return task
        # Refused without asking: somebody had asked just before.


async def test_hanging_key_server_blocks_nobody_who_is_connected(keyed: Keyed):
    _, _, token = await jwks_client(keyed)
    async with keyed.stack.client("hub", token=token, port=keyed.ports["JWKS"]) as other:
        with keyed.jwks.hanging():
            waiting = await ask_in_vain(keyed)
            await other.call("heartbeat")
            assert (await keyed.stack.http("GET", "/healthz", port=keyed.ports["JWKS"])).status == 200
            assert not waiting.done()
            assert await waiting in {401, 503}


@pytest.mark.slow
async def test_hanging_key_server_does_not_keep_out_who_has_a_known_key(keyed: Keyed):
    key, kid, _ = await jwks_client(keyed)
    forger = rsa_key()
    with keyed.jwks.hanging():
        waiting = await ask_in_vain(keyed)
        others = [asyncio.create_task(keyed.ask_jwks(forger, unique("k"))) for _ in range(24)]
        assert await keyed.ask_jwks(key, kid) == 101
        assert not waiting.done()
        assert set(await asyncio.gather(waiting, *others)) <= {401, 503}


# --- Clocks that differ -------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", ["iat", "nbf"])
async def test_clock_of_the_issuer_may_be_a_little_ahead(uvicorn_stack: Stack, claim: str):
    stack, now = uvicorn_stack, time.time()
    ahead: dict[str, Any] = {claim: now + 5}
    assert (await stack.handshake(token=stack.sign(user_id=unique("u"), **ahead))).status == 101
    far: dict[str, Any] = {claim: now + 3600}
    refusal = await stack.handshake(token=stack.sign(user_id=unique("u"), **far))
    stack.assert_refused(refusal, 401, "token_invalid")
    assert re.search(rf"{claim} is 3[56]\d\d(\.\d)? s ahead", refusal.error["message"])


# --- Things that are no handshake at all -----------------------------------------------------------

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
UPGRADE = b"Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
RAW = {
    "random bytes": random.Random(1).randbytes(512).replace(b"\n", b"") + b"\r\n\r\n",
    "zeros": b"\0" * 1024,
    "tls hello": bytes.fromhex("16030100c8010000c40303") + b"\x11" * 200,
    "bad request line": b"HELLO\r\n\r\n",
    "no version": b"GET /hub/\r\n\r\n",
    "bad version": b"GET /hub/ HTTP/9.9\r\n\r\n",
    "bad method": b"\xff\xfe /hub/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "non-ASCII path": b"GET /h\xc3\xbcb/ HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "latin-1 path": b"GET /\xff\xfe HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "non-ASCII path without upgrade": b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "non-ASCII query": b"GET /hub/?token=\xff\xfe HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "bad escapes": b"GET /hub/%zz%ff?token=%ff%zz%00 HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "many fields": b"GET /hub/?" + b"a=1&" * 500 + b" HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "absolute path": b"GET http://x/hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "no key": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + b"\r\n",
    "short key": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + b"Sec-WebSocket-Key: YQ==\r\n\r\n",
    "garbage key": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + b"Sec-WebSocket-Key: \xff\xfe!\r\n\r\n",
    "two keys": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + KEY + b"\r\n",
    "old version": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE.replace(b"13", b"7") + KEY + b"\r\n",
    "garbage version": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE.replace(b"13", b"\xff") + KEY + b"\r\n",
    "no version header": b"GET /hub/ HTTP/1.1\r\n"
    + UPGRADE.replace(b"Sec-WebSocket-Version: 13\r\n", b"")
    + KEY
    + b"\r\n",
    "post upgrade": b"POST /hub/ HTTP/1.1\r\nContent-Length: 3\r\n" + UPGRADE + KEY + b"\r\nabc",
    "non-ASCII header name": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"X-\xff: 1\r\n\r\n",
    "non-ASCII header value": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"X-A: \xff\xfe\r\n\r\n",
    "no colon": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"nonsense\r\n\r\n",
    "non-ASCII host": b"GET /hub/ HTTP/1.1\r\nConnection: close\r\nHost: \xff\xfe\r\n\r\n",
    "odd subprotocols": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"Sec-WebSocket-Protocol: ,;= \r\n\r\n",
    "odd extensions": b"GET /hub/ HTTP/1.1\r\n"
    + UPGRADE
    + KEY
    + b"Sec-WebSocket-Extensions: ;;=,\xff\r\n\r\n",
    "300 headers": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"X-A: 1\r\n" * 300 + b"\r\n",
    "huge header": b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n",
    "huge path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n",
    "other upgrade": b"GET /hub/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "http2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "bad content length": b"POST /hub/ HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
    "chunks of garbage": b"POST /hub/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "frames right away": b"\x81\x85\x01\x02\x03\x04hello" * 20,
    "options star": b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "connect": b"CONNECT evil.test:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "half a request": b"GET /hub/ HTTP/1.1\r\nHos",
}


NOT_FOR_DAPHNE = {
    # It writes a stack trace of its own about these.
    "non-ASCII subprotocol": b"GET /hub/ HTTP/1.1\r\n"
    + UPGRADE
    + KEY
    + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
}


async def raw(port: int, sent: bytes, wait: float = 1.0) -> bytes | None:
    """Send bytes; what came back until the server hung up, None if it just waits for more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.write(sent)
        async with asyncio.timeout(wait):
            await writer.drain()
            while chunk := await reader.read(65536):
                received += chunk
    except TimeoutError:
        return received or None
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return received


async def test_server_survives_what_is_not_even_http(stack: Stack):
    requests = RAW if stack.server == "daphne" else {**RAW, **NOT_FOR_DAPHNE}
    async with stack.client("hub") as bystander:
        answers = await asyncio.gather(*(raw(stack.port, sent) for sent in requests.values()))
        for name, answer in zip(requests, answers, strict=True):
            assert not answer or answer.split(b" ")[1] not in {b"101", b"500"}, (name, answer)
        await bystander.call("heartbeat")
    assert (await stack.http("GET", "/healthz")).status == 200
    assert (await stack.handshake(token=stack.sign())).status == 101
    stack.assert_calm()


async def test_what_is_not_http_is_not_waited_for(uvicorn_stack: Stack):
    answers = await asyncio.gather(*(raw(uvicorn_stack.port, sent) for sent in RAW.values()))
    waiting = {name for name, answer in zip(RAW, answers, strict=True) if answer is None}
    assert waiting <= {"half a request"}


async def test_client_that_hangs_up_in_the_middle_of_a_handshake_leaves_no_trace(stack: Stack):
    token = stack.sign(user_id=unique("u")).encode()
    request = b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + KEY + b"Authorization: Bearer " + token + b"\r\n\r\n"

    def knock() -> None:
        with socket.create_connection(("127.0.0.1", stack.port)) as peer:
            peer.sendall(request)

    await asyncio.gather(*(asyncio.to_thread(knock) for _ in range(20)))
    async with stack.client("hub") as client:
        await client.call("heartbeat")
    stack.assert_calm()


async def test_handshake_that_is_never_finished_is_cut(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
):
    stack = Stack(tmp_path_factory.mktemp("slow"), redis_url, REALTIME_LIMIT_HANDSHAKE_SECONDS="1.5")
    try:
        stack.start_sockets()
        async with stack.client("hub") as settled:
            unfinished = (
                b"",
                b"GET /hub/ HTTP/1.1\r\nHost: x\r\n",
                b"POST /hub/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab",
                b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\n",
            )
            answers = await asyncio.gather(*(raw(stack.port, sent, wait=8) for sent in unfinished))
            assert None not in answers
            assert [answer.count(b"200 OK") for answer in answers if answer is not None] == [0, 0, 0, 1]
            await settled.call("heartbeat")
    finally:
        stack.stop()
    stack.assert_calm()


# --- The first frame -------------------------------------------------------------------------------


async def test_connection_ready_is_the_first_frame_and_says_who_one_is(stack: Stack):
    user = unique("u")
    exp = int(time.time()) + 1000
    token = stack.sign(user_id=user, groups=["sales", "support"], exp=exp)
    async with stack.client("hub", token=token) as client:
        ready = client.ready
        assert client.frames[0]["event"] == "connection:ready"
        assert isinstance(ready["connection_id"], str)
        assert ready["connection_id"]
        assert (ready["namespace"], ready["user_id"], ready["role"]) == ("hub", user, "attendant")
        assert ready["heartbeat_interval"] == 30
        assert_is_utc(ready["expires_at"], exp)
        assert set(ready["rooms"]) == {f"user:{user}", "presence:sales", "presence:support"}
        for offset in ready["rooms"].values():
            assert isinstance(offset, str)
            assert 0 < len(offset) <= 64


async def test_portal_starts_in_the_users_own_room_only(stack: Stack):
    user = unique("u")
    async with stack.client("portal", user, groups=["attendants"], threads=["42"]) as client:
        assert (client.ready["namespace"], client.ready["role"]) == ("portal", "customer")
        assert set(client.ready["rooms"]) == {f"user:{user}"}


async def test_groups_are_the_attendants_unless_the_token_says_otherwise(stack: Stack):
    user = unique("u")
    for claims, groups in (({}, {"attendants"}), ({"groups": None}, {"attendants"}), ({"groups": []}, set())):
        async with stack.client("hub", token=stack.sign(user_id=user, **claims)) as client:
            assert set(client.ready["rooms"]) == {f"user:{user}", *(f"presence:{group}" for group in groups)}


async def test_every_connection_has_an_id_of_its_own(stack: Stack):
    token = stack.sign(user_id=unique("u"))
    async with stack.client("hub", token=token) as first, stack.client("hub", token=token) as second:
        assert first.connection_id != second.connection_id


async def test_client_that_is_refused_sees_nothing_but_the_refusal(stack: Stack):
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(stack.url("hub")) as websocket:
            Client(websocket)
    assert refusal.value.response.status_code in {401, 403}


def assert_is_utc(text: str, timestamp: float) -> None:
    parsed = datetime.fromisoformat(text)
    assert parsed.utcoffset() == datetime.now(UTC).utcoffset()
    assert parsed.timestamp() == pytest.approx(timestamp, abs=1)
