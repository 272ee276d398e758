"""Sections of the admin with pages of their own, which show what no table holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext
from redis.exceptions import RedisError

from presence.admin.display import STYLE
from presence.admin.steps import Step
from realtime.protocol.bus_message import InvalidMessage
from realtime.telemetry.logs import spelled

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin

logger = logging.getLogger(__name__)


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
