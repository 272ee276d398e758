"""Claims under other names than simplejwt's defaults, in every process."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator

import jwt
import pytest

from tests.e2e.harness import PATIENCE, Stack, free_port, unique

SETTINGS = """
from realtime.settings.{side} import *
SIMPLE_JWT = {{**SIMPLE_JWT, "JTI_CLAIM": "tid", "USER_ID_CLAIM": "sub", "TOKEN_TYPE_CLAIM": "use"}}
"""


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("claims")
    for side in ("sockets", "web"):
        (folder / f"{side}_with_other_claims.py").write_text(SETTINGS.format(side=side))
    sockets = {"PYTHONPATH": str(folder), "DJANGO_SETTINGS_MODULE": "sockets_with_other_claims"}
    with Stack(folder, redis_url) as stack:
        stack.start("runbridge", **sockets)
        stack.start_sockets(**sockets)
        yield stack


@pytest.fixture(scope="module")
def web_port(stack: Stack) -> int:
    web = {"PYTHONPATH": str(stack.directory), "DJANGO_SETTINGS_MODULE": "web_with_other_claims"}
    port = free_port()
    stack.start("migrate", ready="", **web).wait()
    stack.start("createdemo", ready="", **web).wait()
    stack.start("runweb", WEB_PORT=str(port), **web)
    return port


def log_in(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    body = json.dumps({"username": "ana", "password": "demo"})
    connection.request("POST", "/token/", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, text
    token: str = json.loads(text)["access"]
    return token


def token(stack: Stack, **claims: str) -> str:
    return stack.sign(**{"use": "access", "sub": unique("u"), "tid": unique("t"), **claims})


async def test_token_is_known_by_the_claim_that_simplejwt_names(stack: Stack):
    tid = unique("t")
    good = token(stack, tid=tid)
    async with stack.client("hub", token=good) as client:
        stack.add("token:revoke", {"jti": tid, "exp": time.time() + 60.5})
        assert await client.expect_close() == 4403
    stack.assert_refused(await stack.handshake(token=good), 401, "token_invalid")


async def test_token_without_that_claim_is_refused(stack: Stack):
    nameless = stack.sign(use="access", sub="7")  # it has a `jti`
    stack.assert_refused(await stack.handshake(token=nameless), 401, "token_invalid")


@pytest.mark.slow
async def test_token_of_the_token_endpoint_has_that_claim(stack: Stack, web_port: int):
    issued = log_in(web_port)
    stack.tokens.add(issued)
    claims = jwt.decode(issued, options={"verify_signature": False})
    assert {"tid", "sub", "use"} <= claims.keys()
    async with stack.client("hub", token=issued) as client:
        stack.add("token:revoke", {"jti": claims["tid"], "exp": float(claims["exp"])})
        assert await client.expect_close() == 4403
