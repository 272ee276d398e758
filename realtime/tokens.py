"""The token endpoint: simplejwt's pair, with the claims that the socket server reads."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import AbstractUser
from rest_framework_simplejwt.serializers import TokenObtainPairSerializer
from rest_framework_simplejwt.tokens import Token

from realtime.authentication import DEFAULT_GROUPS
from realtime.payloads import Id


def role_of(user: AbstractUser) -> str:
    """Superusers are admins, staff are attendants, everybody else is a customer."""
    if user.is_superuser:
        return "admin"
    return "attendant" if user.is_staff else "customer"


def groups_of(user: AbstractUser) -> list[str]:
    """The user's Django groups whose names can be ids; the default group for who has none."""
    names = user.groups.order_by("name").values_list("name", flat=True)
    return [name for name in names if _is_id(name)] or list(DEFAULT_GROUPS)


def _is_id(name: str) -> bool:
    try:
        Id.parse(name)
    except ValueError:
        return False
    return True


class TokenSerializer(TokenObtainPairSerializer):
    """Adds `role`, `name` and, for the team, `groups`.

    A product with roles of its own subclasses it and names the subclass in
    `SIMPLE_JWT["TOKEN_OBTAIN_SERIALIZER"]`.
    """

    @classmethod
    def get_token(cls, user: Any) -> Token:
        token = super().get_token(user)
        token["role"] = role_of(user)
        token["name"] = user.get_full_name() or user.get_username()
        if token["role"] != "customer":
            token["groups"] = groups_of(user)
        return token
