"""Recorded presence in the admin, beside the current status in Redis; and the action that disconnects users."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.db import DataError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from redis.exceptions import RedisError

from presence import store
from presence.admin.display import light, moment, readable
from presence.admin.hours import days
from presence.admin.pages import Pages
from presence.admin.steps import DISCONNECT, DISCONNECTED
from presence.models import PresenceRecord, PresenceTransition
from presence.namespaces import teams
from realtime.paging import BoundedRows
from realtime.publisher import publish
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

DAYS = 14
"""Days that the history offers as a filter."""
LATEST = 20
"""Transitions on a record's page."""


def _ask_redis(request: HttpRequest, records: Sequence[PresenceRecord]) -> None:
    """Fill in `live` of all records, by one round trip for each namespace; an outage of Redis becomes a warning."""
    try:
        for namespace in teams():
            here = {record.user_id: record for record in records if record.namespace == namespace}
            for user_id, status in store.statuses_sync(namespace, [*here]).items():
                here[user_id].live = status
    except RedisError as error:
        logger.warning("live presence not available", extra={"error": spelled(error)})
        messages.warning(request, gettext("Redis does not answer: who is online right now is unknown."))


class LiveChangeList(ChangeList):
    """The rows of one page, with the current status in Redis of each."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if request.method == "GET":  # an action shows no rows
            _ask_redis(request, list(self.result_list))


class RecordedAdmin(BoundedRows, Pages):
    """Recorded facts."""

    if hasattr(admin, "ShowFacets"):  # Django 5.0
        show_facets = admin.ShowFacets.NEVER  # each of them would count the whole table

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """A date in the address that is out of range, or a NUL, is a wrong parameter like any other."""
        try:
            return super().get_changelist_instance(request)
        except (OverflowError, ValueError, DataError) as error:
            raise IncorrectLookupParameters(error) from error

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).prefetch_related("groups")

    @admin.display(description=_("groups"))
    def group_names(self, row: PresenceRecord | PresenceTransition) -> str:
        """The prefetched groups, in order of name."""
        return ", ".join(group.name for group in row.groups.all())


@admin.register(PresenceRecord)
class PresenceRecordAdmin(RecordedAdmin):
    """The status of each user: as recorded, and live."""

    list_display = ("user_id", "name", "namespace", "recorded", "live_status", "group_names", "since_when")
    list_filter = ("status", "groups")
    search_fields = ("user_id", "name")
    sortable_by = ("user_id", "name", "recorded", "since_when")
    fields = (
        "user_id",
        "name",
        "namespace",
        "recorded",
        "live_status",
        "group_names",
        "since_when",
        "updated_when",
    )
    readonly_fields = fields
    actions = ("disconnect",)

    @admin.display(description=_("recorded"), ordering="status")
    def recorded(self, record: PresenceRecord) -> str:
        """The status in the database."""
        return light(record.status)

    @admin.display(description=_("live"))
    def live_status(self, record: PresenceRecord) -> str:
        """The status in Redis."""
        return light(record.live)

    @admin.display(description=_("since"), ordering="since")
    def since_when(self, record: PresenceRecord) -> str:
        """To the second."""
        return moment(record.since)

    @admin.display(description=_("updated"))
    def updated_when(self, record: PresenceRecord) -> str:
        """The last transition, to the second."""
        return moment(record.updated)

    def get_changelist(self, request: HttpRequest, **_: Any) -> type[ChangeList]:
        return LiveChangeList

    def render_change_form(  # noqa: PLR0917  (Django's signature)
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        _ask_redis(request, [obj])
        if request.user.has_perm("presence.view_presencetransition"):
            context = {**context, **self._history(obj)}
        return super().render_change_form(request, context, add, change, form_url, obj)

    def _history(self, record: PresenceRecord) -> dict[str, Any]:
        """The latest transitions of the record's user, for its page."""
        user = {"user_id": record.user_id, "namespace": record.namespace}
        latest = PresenceTransition.objects.filter(**user)[:LATEST]
        return {
            "history": [(moment(row.at), row, readable(row.duration)) for row in latest],
            "history_url": f"{reverse('admin:presence_presencetransition_changelist')}?{urlencode(user)}",
        }

    def has_disconnect_permission(self, request: HttpRequest) -> bool:
        """Whether this operator may disconnect users."""
        return request.user.has_perm(DISCONNECT)

    @admin.action(description=_("Disconnect user"), permissions=("disconnect",))
    def disconnect(self, request: HttpRequest, queryset: QuerySet[PresenceRecord]) -> HttpResponse | None:
        """Close every connection that the selected users have open now, once that is confirmed."""
        if not self.is_confirmed(request):
            context = {"records": queryset, "action": "disconnect"}
            return self.show(request, "presencerecord/disconnect.html", gettext("Disconnect user"), context)
        done = 0
        try:
            for record in queryset:
                publish("user:disconnect", {"user_id": record.user_id, "namespace": record.namespace})
                self.log_change(request, record, DISCONNECTED)
                done += 1
        except RedisError as error:
            logger.warning("user not disconnected", extra={"error": spelled(error)})
            messages.error(request, gettext("Redis does not answer: not all users were disconnected."))
        if done:
            messages.success(
                request,
                ngettext("Disconnected %(count)d user.", "Disconnected %(count)d users.", done)
                % {"count": done},
            )
        return None


class DayFilter(admin.SimpleListFilter):
    """The changes of one day, of which the last two weeks are offered. Nothing is asked of the database for it."""

    title = _("day")
    parameter_name = "day"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        today = timezone.localdate()
        days = [(today - timedelta(number)).isoformat() for number in range(DAYS)]
        return [(day, day) for day in days]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Raises `ValueError` for a text that is no day."""
        if not (text := self.value()):
            return queryset
        [day] = days(date.fromisoformat(text), date.fromisoformat(text))
        return queryset.filter(at__gte=day.opens, at__lt=day.closes)


@admin.register(PresenceTransition)
class PresenceTransitionAdmin(RecordedAdmin):
    """The history of status changes."""

    list_display = (
        "when",
        "user_id",
        "name",
        "from_status",
        "to_status",
        "reason",
        "after",
        "group_names",
    )
    list_filter = (DayFilter, "to_status", "reason", "groups")
    search_fields = ("user_id", "name")
    sortable_by = ("when", "user_id", "to_status", "reason")
    fields = (
        "when",
        "user_id",
        "name",
        "namespace",
        "from_status",
        "to_status",
        "reason",
        "after",
        "group_names",
        "entry_id",
    )
    readonly_fields = fields

    @admin.display(description=_("at"), ordering="at")
    def when(self, transition: PresenceTransition) -> str:
        """To the second."""
        return moment(transition.at)

    @admin.display(description=_("after"))
    def after(self, transition: PresenceTransition) -> str:
        """How long the previous status had lasted."""
        return readable(transition.duration)
