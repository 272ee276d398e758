"""The table of the outbox. An id says the order; a row is deleted once Redis has confirmed its message."""

from __future__ import annotations

import re

import msgspec
from django.db import models
from django.utils.translation import gettext_lazy as _

SEPARATOR = "\n"
"""Between the names in `OutboxMessage.rooms`; no room has it in its name."""


_EVENT = re.compile(rb'\s*{\s*"event"\s*:\s*"([^"\\]*)"')


class OutboxMessage(models.Model):
    """A bus message that Redis has not confirmed yet."""

    id = models.BigAutoField(primary_key=True)
    message = models.BinaryField(_("message"))
    rooms = models.TextField(
        _("rooms"),
        help_text=_("Rooms and subjects of the message: messages that share one are sent in their order."),
    )
    created_at = models.DateTimeField(_("created"))
    due_at = models.DateTimeField(_("due"), help_text=_("From then on a relay may send it."))
    claim = models.CharField(_("claim"), max_length=32, blank=True, default="")
    """Who sends it until `due_at`: the transaction that wrote it, or the last sender that claimed it."""

    objects: models.Manager[OutboxMessage] = models.Manager()

    class Meta:
        db_table = "realtime_outbox"
        verbose_name = _("outbox message")
        verbose_name_plural = _("outbox messages")
        ordering = ("id",)
        default_permissions = ("view", "delete")
        permissions = (("send_outboxmessage", _("Can send an outbox message now")),)

    def __str__(self) -> str:
        return f"{self.event} ({self.pk})"

    @property
    def event(self) -> str:
        """The name of the event; of a row without its message, as far as the beginning `head` of it tells."""
        if "message" in self.get_deferred_fields() and "head" in vars(self):
            found = _EVENT.match(bytes(vars(self)["head"]))
            return found[1].decode(errors="replace") if found else ""
        try:
            decoded = msgspec.json.decode(bytes(self.message))
        except msgspec.DecodeError:
            return ""
        return str(decoded.get("event", "")) if isinstance(decoded, dict) else ""
