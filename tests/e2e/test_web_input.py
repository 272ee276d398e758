"""What a stranger sends to the web side: an answer of 4xx, no stack trace, and nothing of a query string in the log."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.harness import PATIENCE, Stack, free_port
from tests.e2e.plain_http import Response

SECRET = "eyJhbGciOiJub25lIn0"
LEVELS = 5000
DEEP = [
    "[" * LEVELS,
    "[" * LEVELS + "]" * LEVELS,
    '{"username":' * LEVELS,
    '{"a":' * LEVELS + "1" + "}" * LEVELS,
]


@pytest.fixture(scope="module")
def web(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The web side as in production, behind a proxy that ends TLS."""
    with Stack(
        tmp_path_factory.mktemp("web"),
        redis_url,
        DEBUG="0",
        ALLOWED_HOSTS="support.test",
        ALLOWED_ORIGINS="https://support.test",
        WEB_HTTPS="1",
    ) as stack:
        stack.port = free_port()
        stack.start("migrate", ready="", DJANGO_SETTINGS_MODULE="realtime.settings.web").wait()
        stack.start("runweb", WEB_PORT=str(stack.port))
        yield stack


def ask(stack: Stack, method: str, path: str, body: str = "", **headers: str) -> Response:
    given = {
        "Host": "support.test",
        "X-Forwarded-Proto": "https",
        "Content-Type": "application/json",
        **headers,
    }
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=PATIENCE)
    try:
        connection.request(method, path, body.encode(), given)
        response = connection.getresponse()
        return Response(
            response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        )
    finally:
        connection.close()


def part(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize("path", ["/token/", "/token/refresh/"])
@pytest.mark.parametrize("body", DEEP, ids=range(len(DEEP)))
def test_json_that_is_nested_too_deeply_is_a_bad_request(web: Stack, path: str, body: str):
    answer = ask(web, "POST", path, body)
    assert answer.status == 400
    assert isinstance(
        json.loads(answer.body), dict
    )  # newer Pythons parse some of it: then its fields are wrong


@pytest.mark.parametrize("body", DEEP, ids=range(len(DEEP)))
def test_refresh_token_that_is_nested_too_deeply_is_refused(web: Stack, body: str):
    header = part('{"alg":"HS256","typ":"JWT"}')
    for token in (f"{part(body)}.e30.x", f"{header}.{part(body)}.x"):
        answer = ask(web, "POST", "/token/refresh/", json.dumps({"refresh": token}))
        assert answer.status in {400, 401}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "elsewhere.test"}, 400),
        ({"Host": "a b"}, 400),
        ({"Referer": f"https://elsewhere.test/?token={SECRET}"}, 403),
        ({"Referer": f"nonsense?token={SECRET}"}, 403),
        ({"Origin": "https://elsewhere.test"}, 403),
        ({}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/admin/login/", "/nowhere/", "/nowhere/%3F"])
def test_query_string_never_reaches_the_log(web: Stack, path: str, headers: dict[str, str], status: int):
    for method in ("POST", "GET"):
        answer = ask(web, method, f"{path}?token={SECRET}&next=/?token={SECRET}", **headers)
        assert answer.status in {status, 200, 404}
    assert ask(web, "PUT", f"/token/?token={SECRET}").status == 405
    assert SECRET not in web.logs


def test_refusals_are_in_the_log_with_their_path(web: Stack):
    for headers in ({"Host": "elsewhere.test"}, {"Referer": f"https://elsewhere.test/?token={SECRET}"}):
        ask(web, "POST", f"/admin/login/?token={SECRET}", **headers)
    lines: list[dict[str, Any]] = [json.loads(line) for line in web.logs.splitlines() if line.startswith("{")]
    said = {line["logger"]: line["message"] for line in lines}
    assert "elsewhere.test" in said["django.security.DisallowedHost"]
    assert "Referer checking failed - https://elsewhere.test/?…" in said["django.security.csrf"]
    assert "/admin/login/" in said["django.security.csrf"]
    assert all("request" not in line for line in lines)


def test_user_name_whose_marks_take_hours_to_put_in_order_is_an_unknown_one(web: Stack):
    name = "a" + "\u0301\u0316" * 300_000
    answer = ask(web, "POST", "/token/", json.dumps({"username": name, "password": "x"}, ensure_ascii=False))
    assert answer.status == 401


@pytest.mark.parametrize(("escapes", "status"), [(1000, 200), (60_000, 431)])
def test_cookie_of_escapes_is_not_parsed_for_seconds(web: Stack, escapes: int, status: int):
    answer = ask(web, "GET", "/admin/login/", Cookie='a="' + "\\" * escapes + '"')
    assert answer.status == status
