"""The token endpoints: simplejwt's pair of tokens, with the claims that the socket server reads, and its renewal.

A refresh token is used once. The new pair is made from the user as they are then, as if they had just logged in, and
only if since the login the password was not changed and no operator has ended the session.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, cast

from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractUser
from django.db import router, transaction
from django.utils.crypto import constant_time_compare
from django.utils.module_loading import import_string
from redis.exceptions import RedisError
from rest_framework.exceptions import APIException
from rest_framework_simplejwt.exceptions import AuthenticationFailed, TokenError
from rest_framework_simplejwt.serializers import TokenObtainPairSerializer, TokenRefreshSerializer
from rest_framework_simplejwt.settings import api_settings
from rest_framework_simplejwt.token_blacklist.models import OutstandingToken
from rest_framework_simplejwt.tokens import RefreshToken, Token
from rest_framework_simplejwt.views import TokenObtainPairView

from realtime.auth.claims import DEFAULT_GROUPS
from realtime.auth.revocation import disconnected_for, is_token_revoked
from realtime.protocol.ids import composed, is_group
from realtime.protocol.namespaces import namespaces
from realtime.web.login_limit import THROTTLES

CREDENTIALS_CLAIM = "credentials"
"""The hash that Django keeps in sessions, too: it changes with the password."""
AUTH_TIME_CLAIM = "auth_time"
"""When the user logged in, in seconds since the epoch. A renewal keeps it: a disconnect ends earlier sessions."""
PREVIOUS_CLAIM = "previous"
"""The id of the previous pair: it may have been revoked at the moment of the renewal."""


def role_of(user: AbstractUser) -> str:
    """Superusers are admins, staff are attendants, and all other users are customers."""
    if user.is_superuser:
        return "admin"
    return "attendant" if user.is_staff else "customer"


def groups_of(user: AbstractUser) -> list[str]:
    """The user's Django groups that can be presence groups; the default group for a user who is in no group."""
    names = [composed(name) for name in user.groups.order_by("name").values_list("name", flat=True)]
    return [name for name in names if is_group(name)] if names else list(DEFAULT_GROUPS)


class SessionToken(RefreshToken):
    """A refresh token. The access token that comes with it has the same id: `token:revoke` ends both."""

    no_copy_claims: Any = (
        *(api_settings.TOKEN_TYPE_CLAIM, "exp", "iat"),
        *(CREDENTIALS_CLAIM, AUTH_TIME_CLAIM, PREVIOUS_CLAIM),
    )

    @classmethod
    def for_user(cls, user: Any) -> SessionToken:
        token = cast(SessionToken, super().for_user(user))
        token[CREDENTIALS_CLAIM] = user.get_session_auth_hash()
        token[AUTH_TIME_CLAIM] = time.time()
        if _has_blacklist():
            # A copy of the token in the database could be stolen and used, and is not needed.
            OutstandingToken.objects.filter(jti=token[api_settings.JTI_CLAIM]).update(token="")
            OutstandingToken.objects.filter(user=user, expires_at__lt=datetime.now(UTC)).delete()
        return token

    def is_of_password_of(self, user: Any) -> bool:
        """Whether the user's password has not been changed since the login."""
        given = str(self.get(CREDENTIALS_CLAIM, ""))
        known = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
        return any(constant_time_compare(given, each) for each in known)

    def renews(self, other: SessionToken) -> None:
        """Let this token continue the session of another."""
        self[AUTH_TIME_CLAIM] = other[AUTH_TIME_CLAIM]
        self[PREVIOUS_CLAIM] = other[api_settings.JTI_CLAIM]

    def use_up(self) -> None:
        """Make the token invalid. Raises `TokenError` when another request has used it first."""
        if _has_blacklist():
            used: Any = self.blacklist()  # (what get_or_create returns)
            if not used[1]:
                raise TokenError("Token is blacklisted")


def _has_blacklist() -> bool:
    return apps.is_installed("rest_framework_simplejwt.token_blacklist")


class TokenSerializer(TokenObtainPairSerializer):
    """Adds `role`, `name` and, for the team, `groups`.

    A product with other roles subclasses it and names the subclass in `SIMPLE_JWT["TOKEN_OBTAIN_SERIALIZER"]`.
    """

    token_class = SessionToken

    @classmethod
    def get_token(cls, user: Any) -> Token:
        token = super().get_token(user)
        token["role"] = role_of(user)
        token["name"] = user.get_full_name() or user.get_username()
        if token["role"] != "customer":
            token["groups"] = groups_of(user)
        return token


class RefreshSerializer(TokenRefreshSerializer):
    """Exchanges a refresh token for a new pair, made from the user as they are now. The old token is used up."""

    token_class = SessionToken

    @property
    def obtain_serializer(self) -> type[TokenObtainPairSerializer]:
        """The serializer that makes tokens at login."""
        found: type[TokenObtainPairSerializer] = import_string(api_settings.TOKEN_OBTAIN_SERIALIZER)
        return found

    def validate(self, attrs: dict[str, Any]) -> dict[str, str]:
        refresh = self.token_class(attrs["refresh"])
        user = _user_of(refresh)
        if not refresh.is_of_password_of(user):
            raise AuthenticationFailed("The password has been changed.", "password_changed")
        _check_revocations(refresh)
        with transaction.atomic(using=router.db_for_write(OutstandingToken)):
            refresh.use_up()
            renewed: Any = self.obtain_serializer.get_token(user)
            renewed.renews(refresh)
            return {"refresh": str(renewed), "access": str(renewed.access_token)}


def _user_of(refresh: SessionToken) -> Any:
    """The user, if they may log in. Raises `AuthenticationFailed`."""
    users = get_user_model()
    try:
        user = users.objects.get(**{api_settings.USER_ID_FIELD: refresh.get(api_settings.USER_ID_CLAIM)})
    except (users.DoesNotExist, ValueError, TypeError, OverflowError) as error:
        raise AuthenticationFailed("User not found", "user_not_found") from error
    if not api_settings.USER_AUTHENTICATION_RULE(user):
        raise AuthenticationFailed("No active account found for the given token.", "no_active_account")
    return user


def _check_revocations(refresh: SessionToken) -> None:
    """Raises `AuthenticationFailed` when the token was revoked, or its user was disconnected after the login."""
    user_id = str(refresh[api_settings.USER_ID_CLAIM])
    ids = [str(refresh[api_settings.JTI_CLAIM]), str(refresh.get(PREVIOUS_CLAIM, ""))]
    try:
        ages = [disconnected_for(namespace, user_id) for namespace in namespaces()]
        is_revoked = any(map(is_token_revoked, ids))
    except RedisError as error:
        raise Unavailable from error
    # Ages are compared, not times: Redis has another clock. This age is taken last, so that it is not too low.
    age = time.time() - float(refresh[AUTH_TIME_CLAIM])
    if is_revoked or any(ago is not None and age >= ago for ago in ages):
        raise AuthenticationFailed("An operator has ended this session.", "session_ended")


class Unavailable(APIException):
    """Redis does not answer, and so it is not known whether the session was ended."""

    status_code = 503
    default_detail = "The server cannot renew tokens now; try again."
    default_code = "unavailable"
    wait = 2
    """Seconds, for `Retry-After`."""


class LoginView(TokenObtainPairView):
    """Exchanges a user name and a password for a pair of tokens, within the limits."""

    throttle_classes = THROTTLES
