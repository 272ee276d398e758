"""Lists of the live view in parts: which part an address names, and the addresses of its neighbours."""

from __future__ import annotations

from typing import Any

import msgspec
from django import forms
from django.http import HttpRequest
from django.utils.http import urlencode
from django.utils.translation import gettext

from realtime.survey.messages import Place

PAGE = 50
"""Connections, rooms or actions on a page."""


def place(request: HttpRequest) -> Place | None:
    """The place in the list of connections from which the page goes on, if the address names one."""
    text = request.GET.get("after") or request.GET.get("before")
    try:
        return msgspec.json.decode(text, type=Place) if text else None
    except (msgspec.DecodeError, RecursionError):
        return None


def number(request: HttpRequest) -> int:
    """The number of the page, 1 unless the address has another one of at most nine digits."""
    text = request.GET.get("p", "")
    return max(int(text), 1) if text.isdecimal() and len(text) <= 9 else 1


def another(request: HttpRequest, **where: Any) -> str:
    """The query of another page of the same list."""
    query = {key: value for key, value in request.GET.dict().items() if key not in {"after", "before", "p"}}
    places = {key: msgspec.json.encode(value).decode() for key, value in where.items()}
    return "?" + urlencode(query | places)


def numbered(request: HttpRequest, page: int, has_next: bool) -> dict[str, str | None]:
    """The queries of the previous and the next page of a list with numbered pages."""
    return {
        "previous": another(request, p=page - 1) if page > 1 else None,
        "next": another(request, p=page + 1) if has_next else None,
    }


def searched(form: forms.Form, **narrowed: str) -> str:
    """What a list was searched for, in words: `User “ana”, Room “thread:42”`; empty if it is all there is.

    `narrowed` adds what is not a field of the form, and replaces what was typed into one.
    """
    given = {**form.cleaned_data, **narrowed}
    names = {
        **{field.name: field.label for field in form},
        "user": gettext("User"),
        "instance": gettext("Instance"),
    }
    return ", ".join(
        f"{names[name]} “{value}”"
        for name, value in given.items()
        if isinstance(value, str) and value and name != "order"
    )


def kept(request: HttpRequest, *names: str) -> list[tuple[str, str, str]]:
    """What narrows the list beside the form: name, value, and the query without it."""
    given = request.GET.dict()
    found = []
    for name in names:
        if value := given.get(name):
            rest = {key: other for key, other in given.items() if key not in {name, "after", "before"}}
            found.append((name, value, "?" + urlencode(rest)))
    return found
