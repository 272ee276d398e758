"""Which Origin a handshake may have, and what a page may read of the verdict."""

from __future__ import annotations

from typing import Any

import pytest

from realtime.auth.issuing import issue
from realtime.connections.handshake import Refused, check_origin, is_allowed_origin
from tests.inprocess import http


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


# --- The same verdict over plain HTTP ----------------------------------------------------------------


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
