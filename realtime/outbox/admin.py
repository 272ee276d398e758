"""The outbox in the admin: what waits, for how long; sending it now, and dropping it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db import Error as DatabaseError
from django.db.models import QuerySet
from django.db.models.functions import Substr
from django.http import HttpRequest
from django.utils import timezone
from django.utils.timesince import timesince
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext
from redis.exceptions import RedisError

from realtime.conf import conf
from realtime.outbox import table
from realtime.outbox.models import SEPARATOR, OutboxMessage
from realtime.outbox.sending import send, sender
from realtime.paging import BoundedRows
from realtime.redis.bounded import now

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[OutboxMessage]
else:
    ModelAdmin = admin.ModelAdmin

SHOWN_ROOMS = 5
HEAD_BYTES = 200
"""Bytes of a message that are read to show its event: the publisher writes that first."""


@admin.register(OutboxMessage)
class OutboxMessageAdmin(BoundedRows, ModelAdmin):
    """Messages are shown without their data, which may be personal."""

    list_display = ("id", "event_name", "short_rooms", "age", "due_at")
    list_display_links = None
    actions = ("send_now",)
    search_fields = ("rooms",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[OutboxMessage]:
        """The rows with the beginning of their messages, of which each may have 256 KiB. They are no replica's."""
        rows: QuerySet[OutboxMessage] = super().get_queryset(request).using(table.default_database())
        return rows.defer("message").annotate(head=Substr("message", 1, HEAD_BYTES))

    @admin.display(description=_("event"))
    def event_name(self, row: OutboxMessage) -> str:
        """The name of the event."""
        return row.event

    @admin.display(description=_("rooms"))
    def short_rooms(self, row: OutboxMessage) -> str:
        """The first of its rooms, and how many there are beside them."""
        rooms = row.rooms.split(SEPARATOR)
        more = f" +{len(rooms) - SHOWN_ROOMS}" if len(rooms) > SHOWN_ROOMS else ""
        return ", ".join(rooms[:SHOWN_ROOMS]) + more

    @admin.display(description=_("age"), ordering="-created_at")
    def age(self, row: OutboxMessage) -> str:
        """How long ago it was written."""
        return timesince(row.created_at, timezone.now() if timezone.is_aware(row.created_at) else None)

    @admin.action(description=_("Send selected messages now"), permissions=["send"])
    def send_now(self, request: HttpRequest, selected: QuerySet[OutboxMessage]) -> None:
        """Make rows due, and send those that no older row has to precede; relays send the others."""
        ids = set(selected.values_list("pk", flat=True))
        try:
            sent = send_rows(selected.db, ids)
        except (RedisError, DatabaseError) as error:
            self.message_user(request, _("Nothing was sent: %s") % error, messages.ERROR)
            return
        text = ngettext("Sent %(count)d message.", "Sent %(count)d messages.", sent) % {"count": sent}
        self.message_user(request, text, messages.SUCCESS if sent == len(ids) else messages.WARNING)

    def has_send_permission(self, request: HttpRequest) -> bool:
        """Whether this operator may send messages."""
        return request.user.has_perm("realtime_outbox.send_outboxmessage")

    def has_add_permission(self, request: HttpRequest, *_: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def send_rows(using: str, ids: set[int]) -> int:
    """Send these rows, those before which no other row has to be sent; returns how many. Raises what `send` raises."""
    table.make_due(using, ids)
    until, count = now() + conf().publish_timeout, 0
    while sent := send(sender(using), lambda row: row.is_due and row.id in ids, until).ids:
        count += len(sent)
    return count
