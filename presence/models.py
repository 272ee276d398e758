"""Presence in the database: the current status of every user, and the history of changes.

Redis is the authority. Only the recorder writes these tables, from the stream of transitions.
"""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models.functions import Lower
from django.utils.translation import gettext_lazy as _

NAME_LENGTH = 256


class Status(models.TextChoices):
    """The status of a user."""

    ONLINE = "online", _("online")
    AWAY = "away", _("away")
    OFFLINE = "offline", _("offline")


class Reason(models.TextChoices):
    """Why a status changed."""

    CONNECT = "connect", _("connected")
    CHOSEN = "chosen", _("chosen")
    TIMEOUT = "timeout", _("no heartbeat")
    HEARTBEAT = "heartbeat", _("heartbeat again")
    GRACE = "grace", _("did not come back")
    LOGOUT = "logout", _("logged out")
    LEASE = "lease", _("instance died")
    RESET = "reset", _("Redis was reset")
    BUS = "bus", _("set by a backbone")


class PresenceGroup(models.Model):
    """A presence group, which has nothing but a name."""

    name = models.CharField(_("name"), max_length=64, primary_key=True)

    class Meta:
        verbose_name = _("group")
        verbose_name_plural = _("groups")
        ordering = ("name",)
        default_permissions = ()

    def __str__(self) -> str:
        return self.name


class PresenceRecord(models.Model):
    """The status of a user after the last transition that was recorded."""

    namespace = models.CharField(_("namespace"), max_length=16)
    user_id = models.CharField(_("user"), max_length=64)
    name = models.CharField(_("name"), max_length=NAME_LENGTH, blank=True, db_index=True)
    status = models.CharField(_("status"), max_length=8, choices=Status.choices)
    since = models.DateTimeField(_("since"), help_text=_("When the status began."))
    updated = models.DateTimeField(
        _("updated"), help_text=_("The last transition, including changes of groups.")
    )
    groups: models.ManyToManyField[PresenceGroup, Any] = models.ManyToManyField(
        PresenceGroup, related_name="records", verbose_name=_("groups")
    )

    live = "unknown"
    """The status in Redis, where the admin has asked for it."""

    class Meta:
        verbose_name = _("presence record")
        verbose_name_plural = _("presence records")
        ordering = ("-since", "-id")
        default_permissions = ("view",)
        permissions = (("disconnect_presencerecord", _("Can disconnect the user of a presence record")),)
        constraints = (
            models.UniqueConstraint(fields=("user_id", "namespace"), name="presence_one_record_per_user"),
        )
        indexes = (
            models.Index(fields=("-since", "-id"), name="presence_record_since"),
            models.Index(fields=("status", "-since"), name="presence_record_status"),
            models.Index("namespace", Lower("name"), "user_id", name="presence_record_by_name"),
        )

    def __str__(self) -> str:
        return f"{self.name or self.user_id} ({self.namespace})"


class PresenceTransition(models.Model):
    """A change of status: one entry of the stream of transitions."""

    entry_id = models.CharField(
        _("entry"), max_length=41, unique=True, help_text=_("The entry's id in the stream.")
    )
    namespace = models.CharField(_("namespace"), max_length=16)
    user_id = models.CharField(_("user"), max_length=64)
    name = models.CharField(_("name"), max_length=NAME_LENGTH, blank=True)
    from_status = models.CharField(_("from status"), max_length=8, choices=Status.choices)
    to_status = models.CharField(_("to status"), max_length=8, choices=Status.choices)
    reason = models.CharField(_("reason"), max_length=32, choices=Reason.choices)
    at = models.DateTimeField(_("at"))
    duration = models.DurationField(
        _("duration"),
        null=True,
        help_text=_("How long the previous status had lasted; empty if unknown."),
    )
    groups: models.ManyToManyField[PresenceGroup, Any] = models.ManyToManyField(
        PresenceGroup, related_name="transitions", verbose_name=_("groups")
    )

    class Meta:
        verbose_name = _("presence transition")
        verbose_name_plural = _("presence history")
        ordering = ("-at", "-id")
        default_permissions = ("view",)
        indexes = (
            models.Index(fields=("-at", "-id"), name="presence_history_at"),
            models.Index(fields=("user_id", "-at", "-id"), name="presence_history_user"),
            models.Index(fields=("to_status", "-at", "-id"), name="presence_history_to"),
            models.Index(fields=("reason", "-at", "-id"), name="presence_history_reason"),
        )

    def __str__(self) -> str:
        return f"{self.name or self.user_id}: {self.from_status} → {self.to_status}"


class StreamCursor(models.Model):
    """How far a stream has been recorded; moves in the same transaction as the rows."""

    stream = models.CharField(max_length=64, primary_key=True)
    entry_id = models.CharField(max_length=41, default="0-0")

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.stream}: {self.entry_id}"


# --- Not in the database, but with permissions and a place in the admin ------------------------------


class Live(models.Model):
    """What the instances hold now: surveyed when an operator looks, and stored nowhere."""

    id = models.CharField(primary_key=True, max_length=200)
    """The object of an operator's action, in the log."""

    class Meta:
        managed = False
        verbose_name = _("live view")
        verbose_name_plural = _("live view")
        default_permissions = ("view",)
        permissions = (
            ("move_live", _("Can take a user out of a room")),
            ("drain_live", _("Can drain an instance")),
            ("publish_live", _("Can send a test event")),
        )

    def __str__(self) -> str:
        return self.id


class DeadLetter(models.Model):
    """A message that could not be delivered, in the capped stream `realtime:dead`."""

    id = models.CharField(primary_key=True, max_length=41)

    class Meta:
        managed = False
        verbose_name = _("dead letter")
        verbose_name_plural = _("dead letters")
        default_permissions = ("view", "delete")
        permissions = (("resend_deadletter", _("Can edit a dead letter and send it again")),)

    def __str__(self) -> str:
        return self.id


class Availability(PresenceRecord):
    """How long each attendant was online and away per day, computed from the history."""

    class Meta:
        proxy = True
        verbose_name = _("presence over time")
        verbose_name_plural = _("presence over time")
        default_permissions = ("view",)
