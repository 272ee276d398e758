"""The desk's own tables: conversations and their messages. The socket server never sees them."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import models
from django.db.models import Q

from realtime.web.token_claims import role_of


def is_team(user: User) -> bool:
    """Whether the user answers chats."""
    return role_of(user) != "customer"


class Status(models.TextChoices):
    """`waiting` in the queue, `open` with an attendant, `ended` for good."""

    WAITING = "waiting"
    OPEN = "open"
    ENDED = "ended"


class ConversationQuerySet(models.QuerySet["Conversation"]):
    """The conversations that a user may see."""

    def visible_to(self, user: User) -> ConversationQuerySet:
        """All conversations for the team, and their own for customers."""
        return self if is_team(user) else self.filter(customer=user)

    def current_for(self, user: User) -> ConversationQuerySet:
        """The first screen: for an attendant the queue and their own chats, for a customer the chat they opened."""
        if is_team(user):
            return self.filter(Q(status=Status.WAITING) | Q(status=Status.OPEN, attendant=user))
        return self.filter(customer=user).exclude(status=Status.ENDED)


class Conversation(models.Model):
    """A customer's chat with an attendant. Its id is the `thread_id` of the events."""

    customer = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations"
    )
    attendant = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, related_name="+"
    )
    topic = models.CharField(max_length=200)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.WAITING)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ConversationQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["customer"],
                condition=~Q(status="ended"),
                name="one_current_conversation_per_customer",
            )
        ]

    def __str__(self) -> str:
        return f"{self.topic} ({self.status})"

    def as_data(self) -> dict[str, Any]:
        """The conversation in the HTTP API and in the events, in one shape for the same client code.

        Ids are strings, as everywhere on the wire."""
        return {
            "thread_id": str(self.pk),
            "topic": self.topic,
            "status": self.status,
            "customer": _person(self.customer),
            "attendant": _person(self.attendant) if self.attendant else None,
            "created_at": self.created_at,
        }


class Message(models.Model):
    """A message in a conversation, or a note about what its author did: joined, transferred or ended the chat."""

    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages")
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    body = models.TextField()
    is_note = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.body[:50]

    def as_data(self) -> dict[str, Any]:
        """The message in the HTTP API and in the events."""
        return {
            "thread_id": str(self.conversation_id),
            "message_id": str(self.pk),
            "author": _person(self.author),
            "body": self.body,
            "is_note": self.is_note,
            "created_at": self.created_at,
        }


def name_of(user: User) -> str:
    """The name that the other side reads."""
    return user.get_full_name() or user.get_username()


def _person(user: User) -> dict[str, str]:
    return {"user_id": str(user.pk), "name": name_of(user)}
