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
from realtime.connections.handshake import (
    JWTScopeMiddleware,
    Refused,
    check_origin,
    is_allowed_origin,
    unavailable,
)
from realtime.layers.room_layer import RoomChannelLayer
from realtime.protocol.handshake_errors import RefusalCode
from realtime.redis.client import client, key
from tests.inprocess import Connection, bearer, connected, http, refusal

DEAD_REDIS = "redis://127.0.0.1:1/0"


@pytest.fixture
def origins(settings):
    def allow(*origins: str, **values: Any) -> None:
        settings.REALTIME = {**settings.REALTIME, "ALLOWED_ORIGINS": origins, **values}

    return allow


def scope(*origins: str) -> dict[str, Any]:
    return {"headers": [(b"origin", origin.encode()) for origin in origins]}


# --- Origin ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("https://a.test", "https://a.test"),
        ("https://a.test", "HTTPS://A.test"),
        ("https://A.test", "https://a.test"),
        ("https://a.test:443", "https://a.test"),
        ("https://a.test", "https://a.test:443"),
        ("http://a.test", "http://a.test:80"),
        ("http://a.test:8000", "http://a.test:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("null", "null"),
    ],
)
def test_listed_origin_is_allowed(origins, allowed: str, origin: str):
    origins("https://other.test", allowed)
    assert is_allowed_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        *("http://a.test", "https://a.test:8443", "https://a.test:80", "https://b.a.test"),
        *("https://a.test.evil.test", "https://evil-a.test", "https://a.testx", "https://a.test/", "a.test"),
        *("null", "", "https://", "://a.test", "https://a.test@evil.test", "*", "file://"),
    ],
)
def test_other_origins_are_not_allowed(origins, origin: str):
    origins("https://a.test")
    assert not is_allowed_origin(origin)
    with pytest.raises(Refused) as caught:
        check_origin(scope(origin))
    assert (caught.value.status, caught.value.code) == (403, "forbidden_origin")


def test_missing_origin_is_allowed(origins):
    origins("https://a.test")
    check_origin(scope())


def test_missing_origin_is_refused_when_one_is_required(origins):
    origins("https://a.test", REQUIRE_ORIGIN=True)
    check_origin(scope("https://a.test"))
    with pytest.raises(Refused, match="required"):
        check_origin(scope())


def test_two_origins_are_refused_even_if_both_are_listed(origins):
    origins("https://a.test", "https://b.test")
    with pytest.raises(Refused):
        check_origin(scope("https://a.test", "https://b.test"))


def own(origin: str, *hosts: str, **headers: str) -> dict[str, Any]:
    """A handshake with this Origin and these Hosts; `user_agent="x"` is a header."""
    more = {**{f"host{'' if n == 0 else ' '}": host for n, host in enumerate(hosts)}, **headers}
    named = [(name.strip().replace("_", "-").encode(), value.encode()) for name, value in more.items()]
    return {"headers": [(b"origin", origin.encode()), *named]}


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://10.0.2.2:8001", "10.0.2.2:8001"),
        ("https://chat.test", "chat.test"),
        ("http://10.0.2.2:8001/", "10.0.2.2:8001"),  # React Native on iOS
        ("https://chat.test/", "chat.test"),
        ("https://chat.test:443", "chat.test"),  # React Native on Android writes the port as the address does
        ("https://chat.test", "chat.test:443"),
        ("http://chat.test", "chat.test:80"),
        ("HTTPS://Chat.Test", "chat.TEST"),
        ("ws://chat.test:8001", "chat.test:8001"),
        ("wss://chat.test:443", "chat.test"),
        ("http://[::1]:8001", "[::1]:8001"),
        ("http://[::1]", "[::1]:80"),
        ("https://chat.test.", "chat.test."),
    ],
)
@pytest.mark.parametrize("agent", ["okhttp/4.12.0", "App/1 CFNetwork/1568 Darwin/24.0", ""])
def test_own_address_as_origin_is_allowed_to_what_is_no_browser(origins, origin: str, host: str, agent: str):
    origins("https://a.test")
    check_origin(own(origin, host, user_agent=agent))
    check_origin(own(origin, host))


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://chat.test:8002", "chat.test:8001"),
        ("http://chat.test", "chat.test:8001"),
        ("http://chat.test:8001", "chat.test"),
        ("http://chat.test:443", "chat.test"),
        ("https://chat.test:80", "chat.test"),
        ("https://chat.test", "chat.test:80"),
        ("https://chat.test.", "chat.test"),
        ("https://chat.test", "chat.test."),
        ("https://chat.test//", "chat.test"),
        ("https://chat.test/hub", "chat.test"),
        ("https://chat.test?", "chat.test"),
        ("https://user@chat.test", "chat.test"),
        ("https://www.chat.test", "chat.test"),
        ("https://chat.test.evil.test", "chat.test"),
        ("http://[::1]:8001", "[::2]:8001"),
        ("http://[::1]:8001", "::1:8001"),
        ("file://chat.test", "chat.test"),
        ("chat.test", "chat.test"),
        ("null", "null"),
        ("null", "chat.test"),
        ("https://", ""),
    ],
)
def test_other_address_as_origin_is_not_allowed(origins, origin: str, host: str):
    origins("https://a.test")
    with pytest.raises(Refused, match="not allowed"):
        check_origin(own(origin, host))


@pytest.mark.parametrize(
    "headers",
    [
        {"user_agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0.0.0 Safari/537.36"},
        {"sec_fetch_mode": "websocket"},
        {"sec_fetch_site": "same-origin", "user_agent": "okhttp/4.12.0"},
    ],
)
def test_browser_has_to_be_on_a_listed_page_even_at_the_own_address(origins, headers: dict[str, str]):
    origins("https://a.test")
    with pytest.raises(Refused, match="not allowed"):
        check_origin(own("https://chat.test", "chat.test", **headers))


def test_own_address_is_known_by_one_host_alone_and_not_by_what_is_forwarded(origins):
    origins("https://a.test")
    for hosts, forwarded in [
        ((), {}),
        (("chat.test", "chat.test"), {}),
        (("b.test",), {"x_forwarded_host": "chat.test"}),
    ]:
        with pytest.raises(Refused, match="not allowed"):
            check_origin(own("https://chat.test", *hosts, **forwarded))
    with pytest.raises(Refused, match="not allowed"):
        check_origin(
            {
                "headers": [
                    *own("https://chat.test", "chat.test")["headers"],
                    (b"origin", b"https://chat.test"),
                ]
            }
        )


def test_own_address_is_not_enough_where_an_origin_is_required(origins):
    origins("https://a.test", REQUIRE_ORIGIN=True)
    with pytest.raises(Refused, match="not allowed"):
        check_origin(own("https://chat.test", "chat.test"))


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


async def test_allowed_origin_may_read_the_verdict(process, origins):
    origins("https://a.test")
    answer = await http("/hub/", Origin="https://a.test")
    assert answer.headers["access-control-allow-origin"] == "https://a.test"
    assert answer.headers["vary"] == "Origin"
    assert "Retry-After" in answer.headers["access-control-expose-headers"]


async def test_other_origins_may_not(process, origins):
    origins("https://a.test")
    answer = await http("/hub/", Origin="https://evil.test")
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "Origin"


BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"


@pytest.mark.parametrize(
    ("page", "status"),
    [
        ("https://a.test/inbox?thread=42", 204),
        ("https://a.test:443", 204),
        ("https://chat.test/", 403),
        ("http://a.test/", 403),
        ("https://a.test.evil.test/https://a.test/", 403),
        ("nonsense", 403),
    ],
)
@pytest.mark.parametrize("is_required", [False, True])
async def test_verdict_for_a_page_at_the_own_address_is_that_of_its_handshake(
    process, origins, page: str, status: int, is_required: bool
):
    """A browser sends no Origin with a GET to its page's own address, but its Referer."""
    origins("https://a.test", REQUIRE_ORIGIN=is_required)
    headers = {"Authorization": f"Bearer {issue(user_id='7', role='attendant')}", "Referer": page}
    answer = await http("/hub/", **headers, **{"User-Agent": BROWSER})
    assert answer.status == status
    if status == 403:
        assert answer.json["error"]["code"] == "forbidden_origin"


async def test_referer_of_what_is_no_browser_decides_nothing(process, origins):
    origins("https://a.test")
    token = issue(user_id="7", role="attendant")
    answer = await http("/hub/", Authorization=f"Bearer {token}", Referer="https://evil.test/")
    assert answer.status == 204


def test_referer_of_a_handshake_is_no_origin(origins):
    origins("https://a.test", REQUIRE_ORIGIN=True)
    headers = [(b"referer", b"https://a.test/"), (b"user-agent", BROWSER.encode())]
    with pytest.raises(Refused, match="required"):
        check_origin({"type": "websocket", "headers": headers})


async def test_preflight_allows_the_token_to_be_sent(process, origins):
    origins("https://a.test")
    answer = await http("/hub/", "OPTIONS", Origin="https://a.test")
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "https://a.test"
    assert "Authorization" in answer.headers["access-control-allow-headers"]


async def test_other_methods_are_not_allowed(process):
    assert (await http("/hub/", "POST")).status == 405
