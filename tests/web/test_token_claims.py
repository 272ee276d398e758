"""Logging in, and renewing what one got for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from django.contrib.auth.models import Group, User
from django.core.cache import cache
from django.test import Client
from django.urls import reverse
from rest_framework_simplejwt.token_blacklist.models import OutstandingToken
from rest_framework_simplejwt.tokens import AccessToken, RefreshToken

from realtime.auth.verification import verify
from realtime.protocol.handshake_errors import AuthenticationFailed
from realtime.protocol.principal import Principal
from realtime.redis.client import key, sync_client
from realtime.web import token_claims

pytestmark = [
    pytest.mark.django_db,
    # WhiteNoise, about STATIC_ROOT before the first `collectstatic`.
    pytest.mark.filterwarnings("ignore:No directory at"),
]

PASSWORD = "correct horse"


@pytest.fixture(autouse=True)
def prefix(realtime_redis: str) -> str:
    return realtime_redis


@pytest.fixture(autouse=True)
def forget_attempts() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


def user(*groups: str, **values: Any) -> User:
    found = User.objects.create_user("ana", password=PASSWORD, **values)
    found.groups.set([Group.objects.get_or_create(name=name)[0] for name in groups])
    return found


def ask(client: Client, password: str = PASSWORD) -> Any:
    return client.post(reverse("token"), {"username": "ana", "password": password}, "application/json")


def principal(client: Client) -> Principal:
    response = ask(client)
    assert response.status_code == 200, response.content
    return verify(response.json()["access"])


def renew(client: Client, pair: dict[str, str]) -> Any:
    return client.post(reverse("token-refresh"), {"refresh": pair["refresh"]}, "application/json")


def claims(token: str) -> dict[str, Any]:
    return dict(AccessToken(token).payload)  # type: ignore[arg-type]


def test_superuser_gets_a_token_of_an_admin(client: Client):
    ana = user(is_superuser=True, is_staff=True, first_name="Ana", last_name="Lima")
    found = principal(client)
    assert (found.user_id, found.role, found.name) == (str(ana.pk), "admin", "Ana Lima")
    assert found.may_enter("hub")
    assert not found.may_enter("portal")


def test_staff_gets_a_token_of_an_attendant_in_their_django_groups(client: Client):
    user("sales", "attendants", is_staff=True)
    found = principal(client)
    assert found.role == "attendant"
    assert found.groups == ("attendants", "sales")
    assert found.name == "ana"


def test_groups_whose_names_cannot_be_rooms_are_left_out(client: Client):
    user("sales", "Second level", "cafe\u0301", "a:b", "x" * 65, is_staff=True)
    assert principal(client).groups == ("Second level", "café", "sales")


@pytest.mark.parametrize(("groups", "of_token"), [((), ("attendants",)), (("a:b",), ())])
def test_staff_is_in_the_default_group_only_without_any_group(client: Client, groups: Any, of_token: Any):
    user(*groups, is_staff=True)
    assert principal(client).groups == of_token


def test_anybody_else_gets_a_token_of_a_customer_without_groups(client: Client):
    user("sales")
    found = principal(client)
    assert found.role == "customer"
    assert found.may_enter("portal")
    assert not found.may_enter("hub")
    assert "groups" not in claims(ask(client).json()["access"])


def test_refreshed_token_has_the_same_claims_and_a_longer_life(client: Client):
    user("sales", is_staff=True, first_name="Ana")
    pair = ask(client).json()
    response = renew(client, pair)
    before, after = claims(pair["access"]), claims(response.json()["access"])
    for name in ("user_id", "role", "name", "groups"):
        assert after[name] == before[name]
    assert after["exp"] >= before["exp"]
    assert after["jti"] != before["jti"]
    assert verify(response.json()["access"]).groups == ("sales",)


def test_refresh_token_is_no_access_token(client: Client):
    user()
    with pytest.raises(AuthenticationFailed):
        verify(ask(client).json()["refresh"])


@pytest.mark.parametrize("values", [{}, {"is_active": False}], ids=["wrong password", "inactive user"])
def test_who_cannot_log_in_gets_401_and_no_token(client: Client, values: dict[str, Any]):
    user(**values)
    response = ask(client, PASSWORD if values else "wrong")
    assert response.status_code == 401
    assert "access" not in response.json()


# --- Renewal -----------------------------------------------------------------------------------------


def refused(response: Any, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (401, code)
    assert "access" not in response.json()


def test_renewed_token_says_what_the_user_is_now(client: Client):
    ana = user("sales", is_staff=True, is_superuser=True)
    pair = ask(client).json()
    User.objects.filter(pk=ana.pk).update(is_superuser=False, first_name="Ana")
    ana.groups.set([Group.objects.create(name="support")])
    renewed = renew(client, pair).json()
    found = verify(renewed["access"])
    assert (found.role, found.name, found.groups) == ("attendant", "Ana", ("support",))
    User.objects.filter(pk=ana.pk).update(is_staff=False)
    found = verify(renew(client, renewed).json()["access"])
    assert found.role == "customer"
    assert not found.may_enter("hub")


def test_refresh_token_is_good_once(client: Client):
    user()
    pair = ask(client).json()
    renewed = renew(client, pair).json()
    assert renewed["refresh"] != pair["refresh"]
    refused(renew(client, pair), "token_not_valid")
    assert renew(client, renewed).status_code == 200


def test_of_two_requests_with_one_refresh_token_one_gets_a_pair(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    user()
    pair = ask(client).json()
    other: list[Any] = []

    def meanwhile(token_id: str) -> bool:
        if not other:
            other.append(None)
            other[0] = renew(Client(), pair)
        return False

    monkeypatch.setattr(token_claims, "is_token_revoked", meanwhile)
    refused(renew(client, pair), "token_not_valid")
    assert other[0].status_code == 200


def test_session_ends_with_the_password(client: Client):
    ana = user()
    pair = ask(client).json()
    ana.set_password("another one")
    ana.save()
    refused(renew(client, pair), "password_changed")
    again = ask(client, "another one").json()
    assert renew(client, again).status_code == 200


def test_session_survives_a_new_secret_key_as_sessions_do(client: Client, settings: Any):
    user()
    pair = ask(client).json()
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another secret, at least fifty characters long, so be it then"
    assert renew(client, pair).status_code == 200


@pytest.mark.parametrize("happens", ["deleted", "inactive"])
def test_session_ends_with_the_user(client: Client, happens: str):
    ana = user()
    pair = ask(client).json()
    if happens == "deleted":
        ana.delete()
        refused(renew(client, pair), "user_not_found")
    else:
        User.objects.filter(pk=ana.pk).update(is_active=False)
        refused(renew(client, pair), "no_active_account")


@pytest.mark.parametrize("namespace", ["hub", "portal"])
def test_session_ends_when_its_user_is_disconnected_and_another_one_may_begin(client: Client, namespace: str):
    ana = user(is_staff=True)
    pair = ask(client).json()
    now = time.time()
    sync_client().set(key("disconnected", namespace, str(ana.pk)), repr(now + 0.001))
    refused(renew(client, pair), "session_ended")
    sync_client().set(key("disconnected", namespace, str(ana.pk)), repr(now - 3))
    assert renew(client, ask(client).json()).status_code == 200


def test_session_ends_with_the_access_token_that_was_revoked(client: Client):
    user()
    pair = renew(client, ask(client).json()).json()
    sync_client().set(key("revoked", claims(pair["access"])["jti"]), "1")
    refused(renew(client, pair), "session_ended")


def test_order_that_was_under_way_while_the_tokens_were_renewed_ends_the_session(client: Client):
    """Added before the renewal, carried out after it: the bridge was down."""
    ana = user()
    first = ask(client).json()
    ordered_at = time.time()
    pair = renew(client, first).json()
    sync_client().set(key("disconnected", "portal", str(ana.pk)), repr(ordered_at))
    refused(renew(client, pair), "session_ended")


def test_revoke_that_was_under_way_while_the_tokens_were_renewed_ends_the_session(client: Client):
    user()
    first = ask(client).json()
    pair = renew(client, first).json()
    sync_client().set(key("revoked", claims(first["access"])["jti"]), "1")
    refused(renew(client, pair), "session_ended")


def test_without_redis_no_token_is_called_invalid(client: Client, settings: Any):
    user()
    pair = ask(client).json()
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "redis://127.0.0.1:1/0"}
    response = renew(client, pair)
    assert response.status_code == 503
    assert int(response["Retry-After"]) > 0


def test_refresh_token_that_was_not_made_at_login_is_refused(client: Client):
    stock = RefreshToken.for_user(user())
    refused(renew(client, {"refresh": str(stock)}), "password_changed")


@pytest.mark.parametrize("user_id", [None, "", "nobody", [7], "9" * 400])
def test_refresh_token_of_an_odd_user_is_refused(client: Client, user_id: Any):
    token = token_claims.SessionToken()
    token["user_id"] = user_id
    refused(renew(client, {"refresh": str(token)}), "user_not_found")


def test_access_token_has_no_digest_of_the_password_and_the_database_no_token(client: Client):
    user()
    pair = renew(client, ask(client).json()).json()
    own = {token_claims.CREDENTIALS_CLAIM, token_claims.AUTH_TIME_CLAIM, token_claims.PREVIOUS_CLAIM}
    assert not own & claims(pair["access"]).keys()
    assert own <= jwt.decode(pair["refresh"], options={"verify_signature": False}).keys()
    assert {token.token for token in OutstandingToken.objects.all()} == {""}


def test_tokens_that_have_expired_are_forgotten(client: Client):
    user()
    pair = ask(client).json()
    pair = renew(client, pair).json()
    OutstandingToken.objects.update(expires_at="2001-01-01T00:00:00Z")
    renew(client, pair)
    assert OutstandingToken.objects.count() == 1


# --- Limits ------------------------------------------------------------------------------------------


@pytest.fixture
def limits(settings: Any) -> None:
    limits = {"ADDRESS_LOGINS": 5, "NAME_LOGINS": 3}
    settings.REALTIME = {**settings.REALTIME, "LIMITS": limits, "TRUSTED_PROXIES": ["127.0.0.1"]}


def attempt(client: Client, where: str, name: Any, address: str = "203.0.113.9") -> int:
    headers = {"X-Forwarded-For": address}
    if where == "admin":
        response = client.post("/admin/login/", {"username": name, "password": "guess"}, headers=headers)
    else:
        data = {"username": name, "password": "guess"}
        response = client.post(reverse("token"), data, "application/json", headers=headers)
    if response.status_code == 429:
        assert int(response["Retry-After"]) > 0
    return int(response.status_code)


@pytest.mark.parametrize(("where", "wrong"), [("token", 401), ("admin", 200)])
def test_logins_for_a_name_are_limited_wherever_they_come_from(
    client: Client, limits: None, where: str, wrong: int
):
    tried = [attempt(client, where, "ana", f"203.0.113.{n}") for n in range(5)]
    assert tried == [wrong] * 3 + [429] * 2
    assert attempt(client, where, "Ana", "203.0.113.9") == 429
    assert attempt(client, where, "\uff21\uff2e\uff21", "203.0.113.10") == 429
    assert attempt(client, where, "bia", "203.0.113.11") == wrong


@pytest.mark.parametrize(("where", "wrong"), [("token", 401), ("admin", 200)])
def test_logins_from_an_address_are_limited_whatever_the_name(
    client: Client, limits: None, where: str, wrong: int
):
    assert [attempt(client, where, f"u{n}") for n in range(7)] == [wrong] * 5 + [429] * 2
    assert attempt(client, where, "u8", "203.0.113.10") == wrong


@pytest.mark.parametrize(("where", "wrong"), [("token", 401), ("admin", 200)])
def test_address_beyond_its_limit_locks_no_user_out(client: Client, limits: None, where: str, wrong: int):
    assert [attempt(client, where, f"u{n}") for n in range(5)] == [wrong] * 5
    assert {attempt(client, where, "ana") for _ in range(5)} == {429}
    assert attempt(client, where, "ana", "203.0.113.10") == wrong


def test_pages_and_tokens_are_counted_together(client: Client, limits: None):
    assert [attempt(client, where, "ana") for where in ("admin", "token", "admin", "token")][-1] == 429


def test_address_that_a_client_makes_up_does_not_count(client: Client, limits: None, settings: Any):
    settings.REALTIME = {**settings.REALTIME, "TRUSTED_PROXIES": []}
    assert [attempt(client, "token", f"u{n}", f"203.0.113.{n}") for n in range(6)][-1] == 429


def test_limits_may_be_off(client: Client, settings: Any):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"ADDRESS_LOGINS": 0, "NAME_LOGINS": 0}}
    assert {attempt(client, "token", "ana") for _ in range(15)} == {401}


@pytest.mark.parametrize("name", [None, "", [], {"a": 1}, "\ud83d", "x" * 10_000], ids=repr)
def test_odd_name_is_refused_and_no_error(client: Client, limits: None, name: Any):
    assert {attempt(client, "token", name) for _ in range(2)} <= {400, 401}


@pytest.mark.parametrize("body", ["[]", "7", "null", "{", '"x"'])
def test_odd_body_is_refused_and_no_error(client: Client, limits: None, body: str):
    assert client.post(reverse("token"), body, "application/json").status_code == 400


def test_looking_at_the_login_page_is_no_attempt(client: Client, limits: None):
    assert {client.get("/admin/login/").status_code for _ in range(10)} == {200}
