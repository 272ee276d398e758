"""Sections of the admin with pages of their own, over what is in no table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext, gettext_noop
from redis.exceptions import RedisError

from presence.admin.display import STYLE
from realtime.protocol.bus_message import InvalidMessage
from realtime.telemetry.logs import spelled

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """Something an operator is about to do: asked for on a page of its own, done on POST, written into the log."""

    permission: str
    title: str
    question: str
    do: Callable[[], object]
    about: tuple[Model, ...]
    """Each gets an entry in the log, by its `str` and primary key."""
    entry: str
    """What the log says: words that `in_words` knows in every language, and perhaps a colon and more."""
    done: str
    back: str
    """Where to go afterwards."""
    details: tuple[tuple[str, str], ...] = ()
    warning: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    """What the confirmation sends again."""
    button: str = ""


DISCONNECTED = gettext_noop("Disconnected.")
TAKEN_OUT = gettext_noop("Taken out")
DRAINED = gettext_noop("Drained")
SENT = gettext_noop("Sent")
DISCARDED = gettext_noop("Discarded.")


def in_words(entry: str) -> str:
    """An entry of the log, which is kept in English, in the language of who reads it."""
    words, colon, rest = entry.partition(": ")
    return f"{gettext(words)}{colon}{rest}" if words else entry


class ReadOnly(ModelAdmin):
    """Nothing here is added, changed or deleted as a row."""

    class Media:
        css = STYLE

    def has_add_permission(self, request: HttpRequest, *_: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class Pages(ReadOnly):
    """A section with pages of its own."""

    def show(
        self, request: HttpRequest, template: str, title: str, context: Mapping[str, Any]
    ) -> HttpResponse:
        """A page in the admin's frame."""
        return TemplateResponse(
            request,
            template,
            {
                **self.admin_site.each_context(request),
                "title": title,
                "opts": self.opts,
                "media": self.media,
                "may": self.permissions(request),
                **context,
            },
        )

    def permissions(self, request: HttpRequest) -> dict[str, bool]:
        """What this operator may do, for the templates."""
        return {}

    def require(self, request: HttpRequest, permission: str) -> None:
        """Raises `PermissionDenied`."""
        if not request.user.has_perm(permission):
            raise PermissionDenied

    def take(self, request: HttpRequest, step: Step) -> HttpResponse:
        """Ask; on a confirmed POST do it, and write it into the log."""
        self.require(request, step.permission)
        if request.method != "POST" or "confirmed" not in request.POST:
            return self.show(request, "admin/presence/confirm.html", step.title, {"step": step})
        try:
            step.do()
        except RedisError as error:
            logger.warning("operator's action failed", extra={"entry": step.entry, "error": spelled(error)})
            messages.error(request, gettext("Redis does not answer: nothing was done."))
        except InvalidMessage as error:
            messages.error(request, str(error))
        else:
            for each in step.about:
                self.log_change(request, each, step.entry)
            messages.success(request, step.done)
        return HttpResponseRedirect(step.back)
