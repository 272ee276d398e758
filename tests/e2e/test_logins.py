"""Logging in on the web side, and how a session ends, with real processes."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from typing import Any

import jwt
import pytest

from tests.e2e.harness import CHEAP_LOGINS, PATIENCE, SHELL, Stack, free_port

PEOPLE = """
from django.contrib.auth.models import User
for name in ("ana", "bia", "eva", "lia", "mia"):
    User.objects.create_user(name, password="correct horse", is_staff=True)
"""


class Desk(Stack):
    """Socket server, bridge and the web side, with a team of five."""

    def begin(self) -> Desk:
        self.web_port = free_port()
        self.manage("migrate", "--verbosity", "0")
        self.manage(*SHELL, "-c", PEOPLE, **CHEAP_LOGINS)
        self.start_all()
        self.start("runweb", WEB_PORT=str(self.web_port), **CHEAP_LOGINS)
        return self

    def post(self, path: str, **data: str) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.web_port}{path}",
            json.dumps(data).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, self._seen(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {**json.load(error), "retry_after": error.headers["Retry-After"]}

    def _seen(self, pair: dict[str, Any]) -> dict[str, Any]:
        self.tokens |= {pair["access"], pair["refresh"]}
        return pair

    def login(self, name: str) -> dict[str, Any]:
        status, pair = self.post("/token/", username=name, password="correct horse")
        assert status == 200, pair
        return pair

    def renew(self, pair: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return self.post("/token/refresh/", refresh=pair["refresh"])


@pytest.fixture(scope="module")
def desk(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with Desk(tmp_path_factory.mktemp("desk"), redis_url) as desk:
        yield desk.begin()


def claims(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


async def test_user_whom_an_operator_disconnected_has_to_log_in_again(desk: Desk):
    _, pair = desk.renew(desk.login("ana"))
    user_id = claims(pair["access"])["user_id"]
    async with desk.client("hub", token=pair["access"]) as client:
        desk.add("user:disconnect", {"user_id": user_id, "namespace": "hub"})
        assert await client.expect_close() == 4403
    status, answer = desk.renew(pair)
    assert (status, answer["code"]) == (401, "session_ended")
    assert desk.renew(desk.login("ana"))[0] == 200


async def test_token_that_was_revoked_cannot_be_exchanged_for_another(desk: Desk):
    pair = desk.login("bia")
    revoked = claims(pair["access"])
    async with desk.client("hub", token=pair["access"]) as client:
        desk.add("token:revoke", {"jti": revoked["jti"], "exp": revoked["exp"]})
        assert await client.expect_close() == 4403
    status, answer = desk.renew(pair)
    assert (status, answer["code"]) == (401, "session_ended")
    other = desk.login("bia")
    assert (await desk.handshake(token=other["access"])).status == 101
    assert desk.renew(other)[0] == 200


async def test_session_renews_again_and_again_with_what_the_user_is_now(desk: Desk):
    pair = desk.login("eva")
    assert claims(pair["access"])["role"] == "attendant"
    change = "from django.contrib.auth.models import User; u = User.objects.get(username='eva'); "
    desk.manage(*SHELL, "-c", change + "u.is_staff = False; u.save()")
    first, pair = pair, desk.renew(pair)[1]
    assert claims(pair["access"])["role"] == "customer"
    assert (await desk.handshake(token=pair["access"])).status == 403
    assert desk.renew(first)[0] == 401
    pair = desk.renew(pair)[1]
    desk.manage(*SHELL, "-c", change + "u.set_password('other'); u.save()", **CHEAP_LOGINS)
    status, answer = desk.renew(pair)
    assert (status, answer["code"]) == (401, "password_changed")


def test_guessing_passwords_ends_soon_at_the_token_endpoint_and_in_the_admin(desk: Desk):
    tried = [desk.post("/token/", username="lia", password=f"guess {n}") for n in range(12)]
    assert [status for status, _ in tried] == [401] * 10 + [429] * 2
    assert int(tried[-1][1]["retry_after"]) > 0
    page = f"http://127.0.0.1:{desk.web_port}/admin/login/"
    cookies = CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
    browser.open(page, timeout=PATIENCE).close()
    [token] = [cookie.value for cookie in cookies if cookie.name == "csrftoken"]
    form = {"username": "lia", "password": "correct horse", "csrfmiddlewaretoken": token}
    with pytest.raises(urllib.error.HTTPError) as refused:
        browser.open(page, urllib.parse.urlencode(form).encode(), timeout=PATIENCE)
    assert refused.value.code == 429
    refused.value.close()
    assert desk.login("mia")
