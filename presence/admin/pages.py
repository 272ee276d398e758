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

REFRESH = "X-Presence-Refresh"
"""The header of a request for the changing part of a page (static/presence/live.js)."""
FRAME, PART = "admin/presence/frame.html", "admin/presence/part.html"


class Pages(ModelAdmin):
    """A section with pages of its own. Nothing in it is added, changed or deleted as a row."""

    class Media:
        css = STYLE

    may: Mapping[str, str] = {}
    """What an operator may do here, as the templates call it, and the permission for it."""

    def has_add_permission(self, request: HttpRequest, *_: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def show(
        self,
        request: HttpRequest,
        template: str,
        title: str,
        context: Mapping[str, Any],
        *,
        status: int = 200,
    ) -> HttpResponse:
        """A page in the admin's frame; without the frame for the script that refreshes a page.

        `template` is its path below `admin/presence/`.
        """
        template = f"admin/presence/{template}"
        may = {action: request.user.has_perm(permission) for action, permission in self.may.items()}
        shown = {"title": title, "opts": self.opts, "may": may, **context}
        if REFRESH in request.headers:
            # Nor with the messages at the top: they are for the page that the operator opens next.
            return TemplateResponse(request, template, {**shown, "frame": PART}, status=status)
        frame = {**self.admin_site.each_context(request), "media": self.media, "frame": FRAME}
        return TemplateResponse(request, template, {**frame, **shown}, status=status)

    def require(self, request: HttpRequest, permission: str) -> None:
        """Raises `PermissionDenied`."""
        if not request.user.has_perm(permission):
            raise PermissionDenied

    @staticmethod
    def is_confirmed(request: HttpRequest) -> bool:
        """Whether the operator has seen the question of a step and said yes."""
        return request.method == "POST" and "confirmed" in request.POST

    def ask(self, request: HttpRequest, step: Step) -> HttpResponse:
        """The page that asks whether to take a step."""
        return self.show(request, "confirm.html", step.title, {"step": step})

    def take(self, request: HttpRequest, step: Step) -> HttpResponse:
        """Ask; on a confirmed POST do it, and write it into the log."""
        self.require(request, step.permission)
        if not self.is_confirmed(request):
            return self.ask(request, step)
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
