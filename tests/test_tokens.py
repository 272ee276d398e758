from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from rest_framework_simplejwt.tokens import AccessToken

from realtime.authentication import AuthenticationFailed, Principal, verify

pytestmark = [
    pytest.mark.django_db,
    # WhiteNoise, about STATIC_ROOT before the first `collectstatic`.
    pytest.mark.filterwarnings("ignore:No directory at"),
]

PASSWORD = "correct horse"


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


def test_groups_whose_names_cannot_be_ids_are_left_out(client: Client):
    user("sales", "Second level", "café", "x" * 65, is_staff=True)
    assert principal(client).groups == ("sales",)


def test_staff_without_a_usable_group_is_in_the_default_group(client: Client):
    user("Second level", is_staff=True)
    assert principal(client).groups == ("attendants",)


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
    response = client.post(reverse("token-refresh"), {"refresh": pair["refresh"]}, "application/json")
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
