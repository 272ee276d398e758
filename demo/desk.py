"""The desk's actions. Each function is one transaction: it changes the tables, and publishes the events of the change.

`publish` waits for the commit, so a change that is rolled back is never announced.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.db.models import F
from rest_framework import status
from rest_framework.exceptions import APIException

from demo.models import Conversation, Message, Status, is_team, name_of
from realtime.publisher import publish


class Conflict(APIException):
    """The conversation's status does not allow the action (any more)."""

    status_code = status.HTTP_409_CONFLICT
    default_code = "conflict"


def open_chat(customer: User, topic: str) -> Conversation:
    """A customer opens a chat, which waits in the queue. The topic is also the chat's first message.

    Raises `PermissionDenied` for the team, `Conflict` when the customer is in a chat already.
    """
    if is_team(customer):
        raise PermissionDenied("Only customers open chats.")
    try:
        with transaction.atomic():
            conversation = Conversation.objects.create(customer=customer, topic=topic)
            publish("queue:new", {"item_id": conversation.pk, "conversation": conversation.as_data()})
            _add_message(conversation, customer, topic)
    except IntegrityError as error:
        raise Conflict("You have a chat already.") from error
    return conversation


@transaction.atomic
def take(conversation: Conversation, attendant: User) -> None:
    """An attendant takes a waiting chat.

    Raises `PermissionDenied` for customers, `Conflict` when the chat does not wait any more.
    """
    if not is_team(attendant):
        raise PermissionDenied("Only attendants take chats.")
    _lock(conversation, Status.WAITING)
    note = _note(conversation, attendant, f"{name_of(attendant)} joined the chat.")
    publish("queue:taken", {"item_id": conversation.pk, "attendant_id": str(attendant.pk)})
    _hand_to(conversation, attendant, note)


@transaction.atomic
def transfer(conversation: Conversation, attendant: User, colleague: User) -> None:
    """The attendant of a chat hands it to a colleague.

    Raises `PermissionDenied` for any other user, `Conflict` when the chat is not open, or the colleague cannot take it.
    """
    _lock(conversation, Status.OPEN)
    if conversation.attendant != attendant:
        raise PermissionDenied("Only the attendant who has the chat may transfer it.")
    if not is_team(colleague) or colleague == attendant:
        raise Conflict("A chat is transferred to another member of the team.")
    note = _note(
        conversation, attendant, f"{name_of(attendant)} transferred the chat to {name_of(colleague)}."
    )
    _hand_to(conversation, colleague, note)
    # The colleague is not in the thread yet.
    data = {"user_id": colleague.pk, "kind": "transferred", "by": name_of(attendant)}
    publish("user:notification", {**data, "conversation": conversation.as_data()})


@transaction.atomic
def write(conversation: Conversation, author: User, body: str) -> Message:
    """The customer or the attendant writes a message; the customer may also do so while still waiting.

    Raises `PermissionDenied` for any other user, `Conflict` when the chat has ended.
    """
    _lock(conversation, Status.WAITING, Status.OPEN)
    _check_takes_part(conversation, author)
    return _add_message(conversation, author, body)


@transaction.atomic
def end(conversation: Conversation, user: User) -> None:
    """The customer or the attendant ends the chat; a customer may also do so while still waiting.

    Raises `PermissionDenied` for any other user, `Conflict` when it has ended already or was taken meanwhile.
    """
    was_waiting = conversation.status == Status.WAITING
    _lock(conversation, *((Status.WAITING,) if was_waiting else (Status.WAITING, Status.OPEN)))
    _check_takes_part(conversation, user)
    note = _note(conversation, user, f"{name_of(user)} {'cancelled' if was_waiting else 'ended'} the chat.")
    route = _route(conversation)
    _change(conversation, status=Status.ENDED)
    data = {"thread_id": conversation.pk, "ended_by": str(user.pk)}
    publish(
        "chat:ended", {**data, "conversation": conversation.as_data(), "message": note.as_data()}, **route
    )
    publish("queue:updated", {"reason": "ended", "item_id": str(conversation.pk)})


def _check_takes_part(conversation: Conversation, user: User) -> None:
    if user not in (conversation.customer, conversation.attendant):
        raise PermissionDenied("Only the customer and the attendant who has the chat may do this.")


def _hand_to(conversation: Conversation, attendant: User, note: Message) -> None:
    """Give the chat to an attendant. A transfer, too, is `chat:accepted`: to the customer, it is the same."""
    _change(conversation, status=Status.OPEN, attendant=attendant)
    # With user_id the event also goes to the customer, and lets them into the thread.
    publish(
        "chat:accepted",
        {
            "thread_id": conversation.pk,
            "attendant_id": attendant.pk,
            "user_id": conversation.customer_id,
            "conversation": conversation.as_data(),
            "message": note.as_data(),
        },
    )


def _add_message(conversation: Conversation, author: User, body: str) -> Message:
    message = Message.objects.create(conversation=conversation, author=author, body=body)
    publish("thread:message", message.as_data(), **_route(conversation))
    return message


def _note(conversation: Conversation, author: User, body: str) -> Message:
    return Message.objects.create(conversation=conversation, author=author, body=body, is_note=True)


def _route(conversation: Conversation) -> dict[str, Any]:
    """Arguments for `publish`: a customer who waits may not enter the thread yet, and is reached in their own room."""
    if conversation.status == Status.WAITING:
        return {"rooms": [f"user:{conversation.customer_id}"], "namespaces": ["portal"]}
    return {}


def _lock(conversation: Conversation, *expected: Status) -> None:
    """Hold the row until the commit, and read it again. Raises `Conflict` unless its status is an expected one.

    Of two attendants who press "Take" at once, one gets the chat, and no message slips into a chat that is being ended.
    It is an UPDATE because SQLite has no SELECT FOR UPDATE.
    """
    rows = Conversation.objects.filter(pk=conversation.pk, status__in=expected)
    if not rows.update(status=F("status")):
        raise Conflict(
            "This chat has ended." if len(expected) > 1 else f"This chat is not {expected[0].value}."
        )
    conversation.refresh_from_db()


def _change(conversation: Conversation, **changes: Any) -> None:
    """Change a conversation that is locked."""
    for name, value in changes.items():
        setattr(conversation, name, value)
    conversation.save(update_fields=list(changes))
