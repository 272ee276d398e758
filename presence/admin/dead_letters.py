"""Dead letters in the admin: shown with their reasons, and discarded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext, ngettext
from redis.exceptions import RedisError

from presence.admin.display import instant, moment
from presence.admin.pages import Pages
from presence.admin.steps import DISCARDED, Step
from presence.models import DeadLetter
from realtime.bridge.dead_letters import DEAD_LETTERS
from realtime.redis.client import key, sync_client
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

PAGE = 50
VIEW = "presence.view_deadletter"
DISCARD = "presence.delete_deadletter"
_ENTRY = re.compile(r"[0-9]{1,20}-[0-9]{1,20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Letter:
    """One entry of the stream, as it is shown."""

    id: str
    at: str
    reason: str
    source: str
    message: str


def read(count: int, *, before: str = "", after: str = "") -> list[Letter]:
    """Up to `count` letters, newest first: those older than `before`, or the next ones newer than `after`.

    Raises `redis.RedisError`.
    """
    if after:
        entries: Any = sync_client().xrange(key("dead"), min=f"({after}", count=count)
        entries = entries[::-1]
    else:
        entries = sync_client().xrevrange(key("dead"), max=f"({before}" if before else "+", count=count)
    return [_letter(entry_id.decode(), fields) for entry_id, fields in entries]


def discard(ids: Sequence[str]) -> None:
    """Remove letters from the stream. Raises `redis.RedisError`."""
    sync_client().xdel(key("dead"), *ids)


def _letter(entry_id: str, fields: Mapping[bytes, bytes]) -> Letter:
    return Letter(
        id=entry_id,
        at=moment(instant(int(entry_id.partition("-")[0]) / 1000)),
        reason=printable(fields.get(b"reason", b"")),
        source=printable(fields.get(b"source", b"")),
        message=printable(fields.get(b"message", b"")),
    )


def printable(raw: bytes) -> str:
    """Text that is safe to show: characters that are not printable are escaped."""
    text = raw.decode(errors="backslashreplace")
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )


@admin.register(DeadLetter)
class DeadLetterAdmin(Pages):
    """A page of letters at a time."""

    def get_urls(self) -> list[URLPattern]:
        return [
            path("", self.admin_site.admin_view(self.letters), name="presence_deadletter_changelist"),
            path("discard/", self.admin_site.admin_view(self.discard), name="presence_deadletter_discard"),
        ]

    def permissions(self, request: HttpRequest) -> dict[str, bool]:
        return {"discard": request.user.has_perm(DISCARD)}

    def letters(self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None) -> HttpResponse:
        """The letters, newest first."""
        self.require(request, VIEW)
        before, after = (_entry(request.GET.get(name, "")) for name in ("before", "after"))
        context: dict[str, Any] = {"most": DEAD_LETTERS}
        try:
            found = read(PAGE + 1, before=before, after=after)
            context["total"] = sync_client().xlen(key("dead"))
        except RedisError as error:
            logger.warning("dead letters not available", extra={"error": spelled(error)})
            messages.error(request, gettext("Redis does not answer."))
            return self.show(request, "admin/presence/deadletter/list.html", gettext("Dead letters"), context)
        more = len(found) > PAGE
        rows = found[1:] if after and more else found[:PAGE]
        if rows and (more if after else bool(before)):
            context["newer"] = f"?after={rows[0].id}"
        if rows and (more or after):
            context["older"] = f"?before={rows[-1].id}"
        context["rows"] = rows
        return self.show(request, "admin/presence/deadletter/list.html", gettext("Dead letters"), context)

    def discard(self, request: HttpRequest) -> HttpResponse:
        """Discard the selected letters."""
        self.require(request, DISCARD)
        ids = [entry for entry in map(_entry, request.POST.getlist("letter")[:PAGE]) if entry]
        back = reverse("admin:presence_deadletter_changelist")
        if not ids:
            messages.warning(request, gettext("Nothing was selected."))
            return HttpResponseRedirect(back)
        return self.take(
            request,
            Step(
                permission=DISCARD,
                title=gettext("Discard dead letters"),
                question=ngettext(
                    "Discard %(count)d dead letter for good?",
                    "Discard %(count)d dead letters for good?",
                    len(ids),
                )
                % {"count": len(ids)},
                do=partial(discard, ids),
                about=tuple(DeadLetter(id=each) for each in ids),
                entry=DISCARDED,
                done=ngettext(
                    "Discarded %(count)d dead letter.", "Discarded %(count)d dead letters.", len(ids)
                )
                % {"count": len(ids)},
                back=back,
                fields=tuple(("letter", each) for each in ids),
                button=gettext("Discard"),
            ),
        )


def _entry(text: str) -> str:
    """The id of an entry; empty if the text is none."""
    return text if _ENTRY.fullmatch(text) else ""
