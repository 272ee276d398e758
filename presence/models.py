"""What the database keeps of presence: who is seen how now, and every change that led there.

Redis is the truth; these tables follow it through the recorder and nobody else writes them.
"""

from __future__ import annotations

from typing import Any

from django.db import models

NAME_LENGTH = 256


class Status(models.TextChoices):
    """How a user is seen."""

    ONLINE = "online", "online"
    AWAY = "away", "away"
    OFFLINE = "offline", "offline"


class Reason(models.TextChoices):
    """Why a status changed."""

    CONNECT = "connect", "connected"
    CHOSEN = "chosen", "chosen"
    TIMEOUT = "timeout", "no heartbeat"
    HEARTBEAT = "heartbeat", "heartbeat again"
    GRACE = "grace", "did not come back"
    LOGOUT = "logout", "logged out"
    LEASE = "lease", "server died"
    RESET = "reset", "Redis was reset"
    BUS = "bus", "set by a backbone"


class PresenceGroup(models.Model):
    """A presence group, by the only thing that is known of it."""

    name = models.CharField(max_length=64, primary_key=True)

    class Meta:
        verbose_name = "group"
        ordering = ("name",)
        default_permissions = ()

    def __str__(self) -> str:
        return self.name


class PresenceRecord(models.Model):
    """How a user is seen, as of the last transition that was recorded."""

    namespace = models.CharField(max_length=16)
    user_id = models.CharField("user", max_length=64)
    name = models.CharField(max_length=NAME_LENGTH, blank=True, db_index=True)
    status = models.CharField(max_length=8, choices=Status.choices)
    since = models.DateTimeField(help_text="When the status began.")
    updated = models.DateTimeField(help_text="The last transition, a change of groups included.")
    groups: models.ManyToManyField[PresenceGroup, Any] = models.ManyToManyField(
        PresenceGroup, related_name="records"
    )

    live = ""
    """What Redis says now, where the admin asked it."""

    class Meta:
        verbose_name = "presence record"
        ordering = ("-since", "-id")
        default_permissions = ("view",)
        permissions = (("disconnect_presencerecord", "Can disconnect the user of a presence record"),)
        constraints = (
            models.UniqueConstraint(fields=("user_id", "namespace"), name="presence_one_record_per_user"),
        )
        indexes = (
            models.Index(fields=("-since", "-id"), name="presence_record_since"),
            models.Index(fields=("status", "-since"), name="presence_record_status"),
        )

    def __str__(self) -> str:
        return f"{self.name or self.user_id} ({self.namespace})"


class PresenceTransition(models.Model):
    """A change of status: one entry of the stream of transitions."""

    entry_id = models.CharField(max_length=41, unique=True, help_text="The entry's id in the stream.")
    namespace = models.CharField(max_length=16)
    user_id = models.CharField("user", max_length=64)
    name = models.CharField(max_length=NAME_LENGTH, blank=True)
    from_status = models.CharField("from status", max_length=8, choices=Status.choices)
    to_status = models.CharField("to status", max_length=8, choices=Status.choices)
    reason = models.CharField(max_length=32, choices=Reason.choices)
    at = models.DateTimeField()
    duration = models.DurationField(
        null=True, help_text="How long the status that was left had lasted; empty when that is not known."
    )
    groups: models.ManyToManyField[PresenceGroup, Any] = models.ManyToManyField(
        PresenceGroup, related_name="transitions"
    )

    class Meta:
        verbose_name = "presence transition"
        verbose_name_plural = "presence history"
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
