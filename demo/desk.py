"""The desk's actions. Each function is one transaction: it changes the tables, and publishes the events of the change.

`publish` waits for the commit, so a change that is rolled back is never announced.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from rest_framework import status
from rest_framework.exceptions import APIException

from demo.models import Conversation, Message, Status, is_team
from realtime.publisher import publish


class Conflict(APIException):
    """The conversation's status does not allow the action (any more)."""

    status_code = status.HTTP_409_CONFLICT
    default_code = "conflict"


def open_chat(customer: User, topic: str) -> Conversation:
    """A customer opens a chat, which waits in the queue.

    Raises `PermissionDenied` for the team, `Conflict` when the customer is in a chat already.
    """
    if is_team(customer):
        raise PermissionDenied("Only customers open chats.")
    try:
        with transaction.atomic():
            conversation = Conversation.objects.create(customer=customer, topic=topic)
            publish("queue:new", {"item_id": conversation.pk, "conversation": conversation.as_data()})
    except IntegrityError as error:
        raise Conflict("You have a chat already.") from error
    return conversation


def take(conversation: Conversation, attendant: User) -> None:
    """An attendant takes a waiting chat.

    Raises `PermissionDenied` for customers, `Conflict` when the chat does not wait any more.
    """
    if not is_team(attendant):
        raise PermissionDenied("Only attendants take chats.")
    with transaction.atomic():
        _change(conversation, Status.WAITING, status=Status.OPEN, attendant=attendant)
        publish("queue:taken", {"item_id": conversation.pk, "attendant_id": str(attendant.pk)})
        # With user_id the event also goes to the customer, and lets them into the thread.
        publish(
            "chat:accepted",
            {
                "thread_id": conversation.pk,
                "attendant_id": attendant.pk,
                "user_id": conversation.customer_id,
                "conversation": conversation.as_data(),
            },
        )


def write(conversation: Conversation, author: User, body: str) -> Message:
    """The customer or the attendant writes a message.

    Raises `PermissionDenied` for any other user, `Conflict` when the chat is not open.
    """
    _check_takes_part(conversation, author)
    with transaction.atomic():
        _change(conversation, Status.OPEN, status=Status.OPEN)
        message = Message.objects.create(conversation=conversation, author=author, body=body)
        publish("thread:message", message.as_data())
    return message


def end(conversation: Conversation, user: User) -> None:
    """The customer or the attendant ends the chat; a customer may also do so while still waiting.

    Raises `PermissionDenied` for any other user, `Conflict` when it has ended already or was taken meanwhile.
    """
    _check_takes_part(conversation, user)
    if conversation.status == Status.ENDED:
        raise Conflict("This chat has ended.")
    with transaction.atomic():
        _change(conversation, Status(conversation.status), status=Status.ENDED)
        publish("chat:ended", {"thread_id": conversation.pk, "ended_by": str(user.pk)})
        publish("queue:updated", {"reason": "ended", "item_id": str(conversation.pk)})


def _check_takes_part(conversation: Conversation, user: User) -> None:
    if user not in (conversation.customer, conversation.attendant):
        raise PermissionDenied("Only the customer and the attendant who took the chat may do this.")


def _change(conversation: Conversation, expected: Status, **changes: Any) -> None:
    """Change a conversation that is in the expected status. Raises `Conflict`.

    Check and change are one statement: of two attendants who press "Take" at once, one gets the chat. It also
    holds the row until the commit, so that no message slips into a chat that is being ended.
    """
    if not Conversation.objects.filter(pk=conversation.pk, status=expected).update(**changes):
        raise Conflict(f"This chat is not {expected.value}.")
    for name, value in changes.items():
        setattr(conversation, name, value)
