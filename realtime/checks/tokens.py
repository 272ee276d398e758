"""The checks of every process that verifies or signs tokens: their keys, the names of their claims."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, register
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from jwt.algorithms import get_default_algorithms
from jwt.exceptions import PyJWTError

from realtime.auth.jwt_settings import jwt_settings, signing_key_name
from realtime.auth.revocation import MARK_SECONDS

DEVELOPMENT_KEY = "development-"
"""Every key that `make run` generates starts with this."""
EXAMPLE_KEY = "change-me"
"""Every key in `deploy/realtime.env.example` and `deploy/kubernetes/` starts with this."""
SECRET_BYTES = 32
"""The shortest secret for HS256 (RFC 7518 §3.2)."""
LONGEST_LEEWAY = 366 * 86400
_REPETITION = re.compile(r"(.+?)\1+", re.DOTALL)
_UNSAFE = re.compile(r"[\x00-\x20\x7f]")
"""What no request line may hold (`http.client`)."""
_CLAIMS = ("JTI_CLAIM", "TOKEN_TYPE_CLAIM", "USER_ID_CLAIM")
"""simplejwt's settings for the names of the claims that every token needs."""


@register("realtime")
def check_tokens(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find settings with which no token can be verified, or any token can be forged.

    All values are those of simplejwt, with its defaults: without `SIMPLE_JWT` tokens are signed with SECRET_KEY.
    """
    try:
        return [*_apps(), *_keys(), *_claims(), *_leeway()]
    except ImproperlyConfigured as error:
        return [Error(str(error), hint="See docs/settings.md, or leave it out.", id="realtime.E009")]


@register("realtime", deploy=True)
def check_tokens_in_production(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find settings of tokens that are right for development only, or worth a thought."""
    try:
        return [*_tokens()]
    except ImproperlyConfigured:
        return []  # realtime.E009 reports it


def _apps() -> Iterator[CheckMessage]:
    needed = ("django.contrib.contenttypes", "django.contrib.auth")
    if missing := [name for name in needed if not apps.is_installed(name)]:
        yield Error(
            f"{' and '.join(missing)} not in INSTALLED_APPS: simplejwt, which verifies tokens, needs their models",
            hint="Add them. The socket side makes no query: it needs no tables and no database.",
            id="realtime.E032",
        )


def _keys() -> Iterator[CheckMessage]:
    algorithm, signing = str(jwt_settings().ALGORITHM), str(jwt_settings().SIGNING_KEY or "")
    symmetric = algorithm.startswith("HS")
    verifying = signing if symmetric else str(jwt_settings().VERIFYING_KEY or "")
    if algorithm == "none" or algorithm not in get_default_algorithms():
        yield Error(
            f"expected a known JWT_ALGORITHM, got {algorithm!r}",
            hint="Use for example HS256, RS256, ES256 or EdDSA.",
            id="realtime.E009",
        )
    elif verifying:
        yield from _usable(algorithm, verifying, signing_key_name() if symmetric else "JWT_VERIFYING_KEY")
    elif symmetric:
        yield Error(
            f"JWT_SIGNING_KEY is not set; {algorithm} verifies with it",
            hint="Set JWT_SIGNING_KEY to at least 32 random bytes, the same on every process. In development, DEBUG=1 "
            "takes the keys of `make run`.",
            id="realtime.E006",
        )
    elif not jwt_settings().JWK_URL:
        yield Error(
            f"Neither JWT_VERIFYING_KEY nor JWT_JWK_URL is set; {algorithm} verifies with one of them",
            hint="The socket server needs the public key only.",
            id="realtime.E006",
        )
    if (url := jwt_settings().JWK_URL) and not symmetric and not _can_be_fetched(str(url)):
        yield Error(
            "JWT_JWK_URL is not the address of a key set",  # it is not shown, as it may hold a password
            hint="Expected https://host[:port]/path, without a user name, a password or spaces.",
            id="realtime.E009",
        )
    lifetime = jwt_settings().REFRESH_TOKEN_LIFETIME
    if isinstance(lifetime, timedelta) and lifetime.total_seconds() > MARK_SECONDS:
        yield CheckWarning(
            f"SIMPLE_JWT['REFRESH_TOKEN_LIFETIME'] is {lifetime}; "
            f"revocations are remembered for {MARK_SECONDS // 3600} hours",
            hint="A refresh token that lives longer may outlive the record of the user:disconnect that ended it.",
            id="realtime.W003",
        )
    if symmetric and signing and (weakness := _weakness(signing)):
        yield Error(
            f"{signing_key_name()} {weakness}",
            hint="Tokens can be forged by guessing the key. Use at least 32 random bytes (RFC 7518 §3.2), for example "
            "from `openssl rand -base64 48`.",
            id="realtime.E015",
        )
    if not settings.DEBUG and any(
        str(key).startswith((DEVELOPMENT_KEY, EXAMPLE_KEY)) for key in (settings.SECRET_KEY, signing)
    ):
        yield Error(
            "DEBUG is off, and SECRET_KEY or JWT_SIGNING_KEY is a development key or the key of an example",
            hint="Set SECRET_KEY and JWT_SIGNING_KEY to secrets of your own.",
            id="realtime.E007",
        )


def _weakness(secret: str) -> str:
    """Why a secret is easy to guess, without anything of the secret itself; empty if no reason is found."""
    size = len(secret.encode(errors="replace"))
    if size < SECRET_BYTES:
        return f"has {size} bytes, at least {SECRET_BYTES} are needed"
    beginning = secret[:512]
    if 2 * len(_REPETITION.sub(r"\1", beginning)) < len(beginning):
        return "is a repeated pattern"
    return ""


def _claims() -> Iterator[CheckMessage]:
    names = {name: getattr(jwt_settings(), name) for name in _CLAIMS}
    are_names = all(isinstance(name, str) and name for name in names.values())
    if not are_names or len({*names.values()}) < len(names):
        given = ", ".join(f"{setting}={name!r}" for setting, name in names.items())
        yield Error(
            f"expected different claim names in SIMPLE_JWT, got {given}",
            hint="Every token needs an id, a type and a user: give each of these claims a name of its own.",
            id="realtime.E014",
        )


def _leeway() -> Iterator[CheckMessage]:
    leeway = jwt_settings().LEEWAY
    seconds = leeway.total_seconds() if isinstance(leeway, timedelta) else leeway
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and 0 <= seconds <= LONGEST_LEEWAY):
        yield Error(
            f"SIMPLE_JWT['LEEWAY']: expected 0 to {LONGEST_LEEWAY} seconds, or a timedelta, got {leeway!r}",
            hint="Expected a number, for example 10; without it an expired token is refused at once.",
            id="realtime.E009",
        )


def _usable(algorithm: str, key: str, name: str) -> Iterator[CheckMessage]:
    try:
        get_default_algorithms()[algorithm].prepare_key(key)
    except (ValueError, TypeError, PyJWTError):
        # The library's message may quote the key.
        yield Error(
            f"{name} is not a key for {algorithm}",
            hint="Expected PEM (line breaks may be written as \\n), or for HS* a plain secret.",
            id="realtime.E009",
        )


def _can_be_fetched(url: str) -> bool:
    """Whether it can be fetched at all; a user name and a password are not sent, and would get into the log."""
    try:
        parts = urlsplit(url)
        is_complete = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(is_complete) and "@" not in parts.netloc and url.isascii() and not _UNSAFE.search(url)


def _tokens() -> Iterator[CheckMessage]:
    jwt = jwt_settings()
    if str(jwt.ALGORITHM).startswith("HS"):
        yield Info(
            f"JWT_ALGORITHM is {jwt.ALGORITHM}: every process that can check a token can also make one",
            hint="With EdDSA, ES256 or RS256 the socket server needs the public key only.",
            id="realtime.I104",
        )
    elif jwt.SIGNING_KEY not in ("", None, settings.SECRET_KEY) and not settings.DATABASES:
        yield CheckWarning(
            "JWT_SIGNING_KEY is set on the socket side, which signs nothing",
            hint="Keep it on the web side; JWT_VERIFYING_KEY or JWT_JWK_URL is enough here.",
            id="realtime.W105",
        )
    if missing := [name for name in ("AUDIENCE", "ISSUER") if not getattr(jwt, name)]:
        yield CheckWarning(
            f"{' and '.join(f'JWT_{name}' for name in missing)} not set",
            hint="Without them, a token that the same key signed for another service is accepted here.",
            id="realtime.W106",
        )
    if (url := str(jwt.JWK_URL or "")) and not url.lower().startswith("https:"):
        yield CheckWarning(
            "JWT_JWK_URL is not https",
            hint="An attacker who can change the response can sign tokens. Use an https:// address.",
            id="realtime.W107",
        )
