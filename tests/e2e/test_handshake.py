"""Which handshakes are accepted, and how the others are refused."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from http.client import RemoteDisconnected
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.e2e.harness import Stack, unique

ORIGIN = "http://app.test"
"""The origin that the stacks allow."""


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
        *(b"", b"Bearer", b"Bearer  ", b"Basic YTpi", b"Bearer a b", b"Bearer a.b.c", b"\xc3\xa9 x"),
        *(b"Bearer eyJhbGciOiJIUzI1NiJ9.e30.\xe9", b"Bearer \xff\xfe\xe9", b"Bearer " + b"." * 7000),
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


# --- Long tokens, other paths ----------------------------------------------------------------------


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
        *("http://evil.test", "http://app.test:8080", "http://app.test@evil.test", "null", "http://[", "*"),
        *(b"http://\xff\xfe", b"http://app.test\xc2\xa0", "http://" + "a" * 7000),
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
async def test_verdict_is_the_refusal_of_a_handshake(stack: Stack, status: int, code: str):
    headers = {
        "token_missing": [],
        "token_invalid": [bearer(stack.sign(key="another key, of 32 bytes or more"))],
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
        said = [re.sub(rb"[\d.]+ s ago", b"", answer.body) for answer in (handshake, verdict)]
        assert said[0] == said[1]


# --- The own address as Origin ----------------------------------------------------------------------


def own_address(stack: Stack, **more: str) -> list[tuple[str, str | bytes]]:
    """The headers of React Native: it sends the address of the socket as its Origin."""
    return [
        ("Origin", f"http://127.0.0.1:{stack.port}"),
        *((name.replace("_", "-"), more[name]) for name in more),
    ]


@pytest.mark.parametrize("end", ["", "/"])
async def test_app_that_sends_the_address_of_the_server_as_origin_is_accepted(stack: Stack, end: str):
    response = await stack.handshake(
        token=stack.sign(), headers=own_address(stack, User_Agent="okhttp/4.12.0")
    )
    assert response.status == 101


@pytest.mark.parametrize(
    "headers",
    [
        {"User_Agent": "Mozilla/5.0 (X11; Linux x86_64) HeadlessChrome/140.0.0.0 Safari/537.36"},
        {"Sec_Fetch_Mode": "websocket"},
    ],
)
async def test_browser_at_the_address_of_the_server_is_refused_unless_it_is_listed(
    stack: Stack, headers: dict[str, str]
):
    response = await stack.handshake(token=stack.sign(), headers=own_address(stack, **headers))
    stack.assert_refused(response, 403, "forbidden_origin")


async def test_two_origins_are_refused_even_if_each_is_allowed(stack: Stack):
    headers = [*own_address(stack), ("Origin", ORIGIN)]
    assert (await stack.handshake(token=stack.sign(), headers=headers)).status in {400, 403}


@pytest.mark.parametrize(
    "origin", ["http://127.0.0.1", "http://127.0.0.1:1", "http://localhost", "http://chat.test"]
)
async def test_other_host_or_port_as_origin_is_refused_whatever_is_forwarded(stack: Stack, origin: str):
    headers = [("Origin", origin), ("X-Forwarded-Host", origin.removeprefix("http://"))]
    stack.assert_refused(await stack.handshake(token=stack.sign(), headers=headers), 403, "forbidden_origin")


async def test_verdict_on_the_own_address_is_that_of_the_handshake(uvicorn_stack: Stack):
    bearing = [bearer(uvicorn_stack.sign()), *own_address(uvicorn_stack)]
    assert (await uvicorn_stack.http("GET", "/hub/", bearing)).status == 204
    asked = await uvicorn_stack.http("GET", "/hub/", [*bearing, ("User-Agent", "Mozilla/5.0")])
    assert (asked.status, asked.error["code"]) == (403, "forbidden_origin")
    assert "access-control-allow-origin" not in asked.headers


# --- Other settings --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict_stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """As in production: no debugging, an audience, an issuer, some leeway, another claim for the user."""
    with Stack(
        tmp_path_factory.mktemp("strict"),
        redis_url,
        DEBUG="0",
        SECRET_KEY="a production secret, long enough to be one: 0123456789abcdef",
        ALLOWED_HOSTS="127.0.0.1",
        ALLOWED_ORIGINS="https://app.test,null",
        JWT_AUDIENCE="chat, sockets",
        JWT_ISSUER="https://id.test",
        JWT_LEEWAY="30",
    ) as stack:
        stack.start_sockets()
        yield stack


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


# --- The first frame -------------------------------------------------------------------------------
