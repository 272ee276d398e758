from __future__ import annotations

import asyncio
import json
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from channels.testing import WebsocketCommunicator
from redis.exceptions import ConnectionError as RedisDown

from realtime.asgi import application
from realtime.auth.issuing import issue
from realtime.auth.verification import verify
from realtime.connections.arrivals import Arrivals
from realtime.connections.handshake import JWTScopeMiddleware, Refused, unavailable
from realtime.layers.room_layer import RoomChannelLayer
from realtime.protocol.handshake_errors import RefusalCode
from realtime.redis.client import client, key
from tests.inprocess import Connection, bearer, connected, http, refusal

DEAD_REDIS = "redis://127.0.0.1:1/0"


# --- Refusals ----------------------------------------------------------------------------------------


def test_refusal_says_code_and_message():
    assert json.loads(Refused(RefusalCode.FORBIDDEN_ROLE, "no").body) == {
        "error": {"code": "forbidden_role", "message": "no"}
    }


def test_refusal_for_now_says_when_to_try_again():
    assert unavailable().status == 503
    assert int(unavailable().headers["Retry-After"]) > 0


def test_refusal_is_never_cached():
    assert Refused(RefusalCode.TOKEN_MISSING, "no").headers["Cache-Control"] == "no-store"


def test_refusal_for_want_of_a_token_says_which_scheme():
    assert Refused(RefusalCode.TOKEN_MISSING, "no").headers["WWW-Authenticate"] == "Bearer"
    assert "WWW-Authenticate" not in Refused(RefusalCode.FORBIDDEN_ROLE, "no").headers


# --- The WebSocket handshake -------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/hub/", "/hub", "/portal/", "/portal"])
async def test_namespace_is_found_with_and_without_trailing_slash(process, path: str):
    assert (await refusal(path)).code == "token_missing"


@pytest.mark.parametrize("path", ["/", "/lobby/", "/hub/x", "/hub//", "/HUB/", "/ws/hub/"])
async def test_other_paths_are_not_found(process, path: str):
    answer = await refusal(path, headers=bearer(issue(user_id="7", role="attendant")))
    assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "role"), [("/hub/", "customer"), ("/portal/", "attendant"), ("/portal/", "admin")]
)
async def test_role_of_the_other_namespace_is_forbidden(process, path: str, role: str):
    answer = await refusal(path, headers=bearer(issue(user_id="7", role=role)))
    assert (answer.status, answer.code) == (403, "forbidden_role")


async def test_expired_token_is_refused_before_accept(process):
    answer = await refusal("/hub/", headers=bearer(issue(user_id="7", role="attendant", ttl=-1)))
    assert (answer.status, answer.code) == (401, "token_expired")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/json"


async def test_server_that_cannot_answer_a_handshake_closes_it(process):
    communicator = WebsocketCommunicator(application, "/hub/")
    assert await communicator.connect() == (False, 1000)


async def test_client_that_offers_no_subprotocol_gets_none(process):
    token = issue(user_id="7", role="attendant")
    connection = Connection("/hub/", subprotocols=[f"bearer.{token}"])
    assert await connection.handshake() is None
    await connection.disconnect()


async def test_token_goes_no_further_than_the_handshake(process, settings):
    settings.REALTIME = {**settings.REALTIME, "QUERY_TOKEN": True}
    seen: dict[str, Any] = {}

    async def inner(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.update(scope)

    token = issue(user_id="7", role="attendant")
    for credential in (
        {"headers": [(b"host", b"h"), *bearer(token)], "query_string": b"resume=1"},
        {"headers": [], "query_string": f"token={token}&resume=1".encode()},
        {"headers": [(b"sec-websocket-protocol", b"x")], "subprotocols": ["realtime.v1", f"bearer.{token}"]},
    ):
        await JWTScopeMiddleware(inner, "hub")({"type": "websocket", **credential}, None, None)
        assert seen.pop("principal").user_id == "7"
        assert token not in repr(seen)
    assert seen["subprotocols"] == ["realtime.v1"]


async def test_scope_that_came_in_is_not_changed(process):
    async def inner(scope: dict[str, Any], receive: Any, send: Any) -> None:
        pass

    given = {"type": "websocket", "headers": bearer(issue(user_id="7", role="attendant"))}
    await JWTScopeMiddleware(inner, "hub")(given, None, None)
    assert set(given) == {"type", "headers"}
    assert len(given["headers"]) == 1


async def test_revoked_token_is_refused(process):
    token = issue(user_id="7", role="attendant")
    async with connected(token=token):
        pass
    await client().set(key("revoked", verify(token).jti), "1")
    answer = await refusal("/hub/", headers=bearer(token))
    assert (answer.status, answer.code) == (401, "token_invalid")


async def test_handshake_is_refused_while_redis_is_down(process, settings):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": DEAD_REDIS}
    answer = await refusal("/hub/", headers=bearer(issue(user_id="7", role="attendant")))
    assert (answer.status, answer.code) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def test_handshake_is_refused_while_the_channel_layer_is_down(process, settings):
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [{"address": DEAD_REDIS}]},
        }
    }
    answer = await refusal("/hub/", headers=bearer(issue(user_id="7", role="attendant")))
    assert (answer.status, answer.code) == (503, "unavailable")


@pytest.mark.parametrize("failure", [RedisDown("away"), ConnectionRefusedError()], ids=repr)
async def test_handshake_is_refused_while_the_layer_gives_no_channel(
    process, monkeypatch, failure: Exception
):
    monkeypatch.setattr(RoomChannelLayer, "attach", AsyncMock(side_effect=failure))
    answer = await refusal("/hub/", headers=bearer(issue(user_id="7", role="attendant")))
    assert (answer.status, answer.code) == (503, "unavailable")


async def test_handshake_that_takes_too_long_is_cut(process, settings, monkeypatch):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"HANDSHAKE_SECONDS": 0.1}}
    monkeypatch.setattr(Arrivals, "ask", lambda *_: asyncio.get_running_loop().create_future())
    answer = await refusal("/hub/", headers=bearer(issue(user_id="7", role="attendant")))
    assert (answer.status, answer.code) == (503, "unavailable")


async def test_mistake_in_the_handshake_is_unavailable_and_tells_nothing(process, monkeypatch, caplog):
    monkeypatch.setattr(Arrivals, "ask", Mock(side_effect=ZeroDivisionError("a secret")))
    answer = await refusal("/hub/", headers=bearer(issue(user_id="7", role="attendant")))
    assert (answer.status, answer.code) == (503, "unavailable")
    assert "secret" not in answer.error["message"]
    assert "handshake failed" in caplog.text


# --- The same verdict over plain HTTP ----------------------------------------------------------------


@pytest.mark.parametrize("path", ["/hub", "/hub/"])
async def test_verdict_is_204_if_a_handshake_would_be_accepted(process, path: str):
    token = issue(user_id="7", role="attendant")
    answer = await http(path, Authorization=f"Bearer {token}")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["cache-control"] == "no-store"


async def test_verdict_while_redis_is_down(process, settings):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": DEAD_REDIS}
    answer = await http("/hub/", Authorization=f"Bearer {issue(user_id='7', role='attendant')}")
    assert (answer.status, answer.json["error"]["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def test_other_methods_are_not_allowed(process):
    assert (await http("/hub/", "POST")).status == 405
