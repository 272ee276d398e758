"""Who gets in, who does not, and what they are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import RemoteDisconnected
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from websockets.asyncio.client import connect

from tests.e2e.harness import Stack, eventually, free_port, unique
from tests.e2e.jwks_server import JwksServer

ORIGIN = "http://app.test"
"""The one that the stacks allow."""


def bearer(token: str | bytes) -> tuple[str, bytes]:
    return ("Authorization", b"Bearer " + (token.encode() if isinstance(token, str) else token))


def subprotocols(*names: str) -> tuple[str, str]:
    return ("Sec-WebSocket-Protocol", ", ".join(names))


def customer(stack: Stack, **claims: Any) -> str:
    return stack.sign(role="customer", **claims)


# --- Three credential sources ----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/hub/", "/hub"])
async def test_token_in_the_authorization_header_opens_the_hub(stack: Stack, path: str):
    assert (await stack.handshake(path, token=stack.sign())).status == 101


@pytest.mark.parametrize("path", ["/portal/", "/portal"])
async def test_token_in_the_authorization_header_opens_the_portal(stack: Stack, path: str):
    assert (await stack.handshake(path, token=customer(stack))).status == 101


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


# --- Tokens that are not good ----------------------------------------------------------------------


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
    for path in ("/", "/hub//", "/Hub/", "/healthz"):
        stack.assert_refused(await stack.handshake(path, token=stack.sign()), 404, "not_found")


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


async def test_query_token_is_off_in_production(strict_stack: Stack):
    token = strict_token(strict_stack)
    assert (await strict_stack.handshake(token=token)).status == 101
    response = await strict_stack.handshake(f"/hub/?token={token}")
    strict_stack.assert_refused(response, 401, "token_missing")
    verdict = await strict_stack.http("GET", f"/hub/?token={token}")
    assert (verdict.status, verdict.error["code"]) == (401, "token_missing")


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


def assert_is_utc(text: str, timestamp: float) -> None:
    parsed = datetime.fromisoformat(text)
    assert parsed.utcoffset() == datetime.now(UTC).utcoffset()
    assert parsed.timestamp() == pytest.approx(timestamp, abs=1)
