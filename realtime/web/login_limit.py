"""Limits on logins per address and per user name (`LIMITS`), for REST framework's views and for the admin."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from functools import wraps
from hashlib import sha256
from math import ceil
from typing import Any

from django.contrib.auth import get_user_model
from django.http import HttpRequest, HttpResponse
from rest_framework.exceptions import Throttled
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle, SimpleRateThrottle

from realtime.conf import conf
from realtime.connections.addresses import client_address

LONGEST_NAME = 500
"""Characters of a user name that are compared: to normalize marks that are out of order takes quadratic time."""


class LoginThrottle(SimpleRateThrottle):
    """Counts attempts, including successful ones, in Django's default cache."""

    def get_rate(self) -> Any:
        return f"{limit}/minute" if (limit := self.limit()) else None

    def limit(self) -> int:
        """Attempts a minute; 0: no limit."""
        raise NotImplementedError

    def counted(self, request: Any) -> str | None:
        """The value by which attempts are counted; None: this attempt is not counted."""
        raise NotImplementedError

    def get_cache_key(self, request: Any, view: Any) -> str | None:
        if (counted := self.counted(request)) is None:
            return None
        ident = sha256(counted.encode("utf-8", "surrogatepass")).hexdigest()
        return self.cache_format % {"scope": self.scope, "ident": ident}


class AddressThrottle(LoginThrottle):
    """By the client's address; X-Forwarded-For counts only behind `TRUSTED_PROXIES`."""

    scope = "login_address"

    def limit(self) -> int:
        return conf().limits.address_logins

    def counted(self, request: Any) -> str:
        forwarded = request.headers.get("x-forwarded-for", "")
        return client_address(request.META.get("REMOTE_ADDR", ""), forwarded, conf().trusted_proxies)


class NameThrottle(LoginThrottle):
    """By the user name, from any address."""

    scope = "login_name"

    def limit(self) -> int:
        return conf().limits.name_logins

    def counted(self, request: Any) -> str | None:
        form: Any = request.data if isinstance(request, Request) else request.POST
        name = form.get(get_user_model().USERNAME_FIELD) if isinstance(form, Mapping) else None
        return unicodedata.normalize("NFKC", str(name)[:LONGEST_NAME]).casefold() if name else None


class AttemptThrottle(BaseThrottle):
    """Both: an attempt that its address may not make is not counted for the name, or it would lock that user out."""

    _refusing: LoginThrottle | None = None

    def allow_request(self, request: Any, view: Any) -> bool:
        tried = (AddressThrottle(), NameThrottle())
        self._refusing = next((each for each in tried if not each.allow_request(request, view)), None)
        return self._refusing is None

    def wait(self) -> float | None:
        return self._refusing.wait() if self._refusing is not None else None


THROTTLES = [AttemptThrottle]


def limited(login: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Put the same limits on a login page of Django: `limited(admin.site.login)`. Beyond them it answers 429."""

    @wraps(login)
    def view(request: HttpRequest, *arguments: Any, **more: Any) -> HttpResponse:
        if request.method == "POST":
            throttle = AttemptThrottle()
            if not throttle.allow_request(request, None):
                return _too_many(throttle.wait() or 0)
        return login(request, *arguments, **more)

    return view


def _too_many(wait: float) -> HttpResponse:
    text = str(Throttled(wait).detail)
    headers = {"Retry-After": str(ceil(wait))}
    return HttpResponse(text, status=429, content_type="text/plain; charset=utf-8", headers=headers)
