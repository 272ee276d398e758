"""The actions of operators, each as a step that is confirmed before it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from django.db.models import Model
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.translation import gettext, gettext_noop, ngettext

from presence.admin.letters import HANDLED, Letter, printable
from presence.models import DeadLetter, Live
from presence.namespaces import lists_customers
from realtime.protocol.bus_message import BusMessage
from realtime.publisher import publish

DISCONNECT = "presence.disconnect_presencerecord"
MOVE = "presence.move_live"
DRAIN = "presence.drain_live"
PUBLISH = "presence.publish_live"
DISCARD = "presence.delete_deadletter"
RESEND = "presence.resend_deadletter"


@dataclass(frozen=True, slots=True)
class Step:
    """An action of an operator: confirmed on a page of its own, done on POST, written into the log."""

    permission: str
    title: str
    question: str
    do: Callable[[], object]
    about: tuple[Model, ...]
    """Objects that each get an entry in the log."""
    entry: str
    """The text in the log: words that `in_words` translates, and perhaps a colon and more."""
    done: str
    back: str
    """The address of the page that follows."""
    details: tuple[tuple[str, str], ...] = ()
    warning: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    """Values of the form, which the confirmation sends again."""
    button: str = ""


DISCONNECTED = gettext_noop("Disconnected.")
TAKEN_OUT = gettext_noop("Taken out")
DRAINED = gettext_noop("Drained")
SENT = gettext_noop("Sent")
DISCARDED = gettext_noop("Discarded.")
SENT_AGAIN = gettext_noop("Sent again")
EDITED = gettext_noop("Edited and sent again")
NOT_CONFIRMED = gettext_noop("Sent again, not confirmed by Redis")


def in_words(entry: str) -> str:
    """An entry of the log, which is stored in English, in the language of the reader."""
    words, colon, rest = entry.partition(": ")
    return f"{gettext(words)}{colon}{rest}" if words else entry


# --- Of the live view ----------------------------------------------------------------------------


def disconnect(namespace: str, user_id: str) -> Step:
    """Close every connection of a user."""
    return Step(
        permission=DISCONNECT,
        title=gettext("Disconnect user"),
        question=gettext("Close every connection that this user has open now?"),
        warning=gettext("Logins end too: the user needs the password to get a new token."),
        details=((gettext("User"), user_id), (gettext("Namespace"), namespace)),
        do=partial(publish, "user:disconnect", {"user_id": user_id, "namespace": namespace}),
        about=(_user(namespace, user_id),),
        entry=DISCONNECTED,
        done=gettext("The user is being disconnected."),
        back=_connections(user=user_id, namespace=namespace),
        button=gettext("Disconnect"),
    )


def take_out(namespace: str, user_id: str, room: str) -> Step:
    """Take a user out of a room."""
    if lists_customers(namespace):
        event = "room:revoke"
        warning = gettext("The right to see this room is taken as well, until the backbone grants it again.")
    else:
        event = "room:expel"
        warning = gettext("Nothing keeps this user from joining the room again.")
    return Step(
        permission=MOVE,
        title=gettext("Take out of a room"),
        question=gettext("Take this user out of the room, in every tab?"),
        warning=warning,
        details=((gettext("User"), user_id), (gettext("Namespace"), namespace), (gettext("Room"), room)),
        do=partial(publish, event, {"user_id": user_id, "namespace": namespace, "room": room}),
        about=(_user(namespace, user_id),),
        entry=f"{TAKEN_OUT}: {room}",
        done=gettext("The user is being taken out of the room."),
        back=_connections(user=user_id, namespace=namespace),
        button=gettext("Take out"),
    )


def drain(instance: str, name: str) -> Step:
    """Stop an instance as SIGTERM does."""
    return Step(
        permission=DRAIN,
        title=gettext("Drain an instance"),
        question=gettext("Close all connections of this instance, spread over the drain time, and end it?"),
        warning=gettext(
            "Its clients reconnect to the other instances. The process manager has to start this instance again."
        ),
        details=((gettext("Instance"), name or instance), (gettext("Id"), instance)),
        do=partial(publish, "instance:drain", {"instance": instance}),
        about=(Live(id=f"instance {name or instance}"[:200]),),
        entry=f"{DRAINED}: {instance}",
        done=gettext("The instance is being drained."),
        back=reverse("admin:presence_live_instances"),
        button=gettext("Drain"),
    )


def send(cleaned: Mapping[str, Any], audience: str, fields: tuple[tuple[str, str], ...]) -> Step:
    """Publish the test event of a form that is valid."""
    event, payload, delivery = cleaned["event"], cleaned["payload"], cleaned["delivery"]
    rooms = _rooms(delivery)
    return Step(
        permission=PUBLISH,
        title=gettext("Test event"),
        question=gettext("Send this event to all connections in these rooms?"),
        details=(
            (gettext("Event"), event),
            (gettext("Data"), printable(json.dumps(payload, ensure_ascii=False, indent=2))),
            (gettext("Rooms"), rooms),
            (gettext("Connections there now"), audience),
        ),
        do=partial(publish, event, payload, rooms=cleaned["rooms"]),
        about=(Live(id=event),),
        entry=f"{SENT}: {rooms}: {printable(json.dumps(payload, ensure_ascii=False))[:1000]}",
        done=gettext("The event was sent."),
        back=reverse("admin:presence_live_event"),
        fields=fields,
        button=gettext("Send"),
    )


# --- Of dead letters -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parcel:
    """A dead letter and the message that is sent in its place."""

    letter: Letter
    encoded: bytes
    parsed: BusMessage
    is_edited: bool = False

    def entry(self, words: str = "") -> str:
        """The text in the log; `words` say what was done if it was not simply sent."""
        done = words or (EDITED if self.is_edited else SENT_AGAIN)
        return f"{done}: {self.parsed.event}: {printable(self.encoded)[:1000]}"


def discard(ids: Sequence[str], do: Callable[[], object]) -> Step:
    """Remove dead letters."""
    count = {"count": len(ids)}
    return Step(
        permission=DISCARD,
        title=gettext("Discard dead letters"),
        question=ngettext(
            "Discard %(count)d dead letter for good?", "Discard %(count)d dead letters for good?", len(ids)
        )
        % count,
        do=do,
        about=tuple(DeadLetter(id=each) for each in ids),
        entry=DISCARDED,
        done=ngettext("Discarded %(count)d dead letter.", "Discarded %(count)d dead letters.", len(ids))
        % count,
        back=reverse("admin:presence_deadletter_changelist"),
        fields=tuple(("letter", each) for each in ids),
        button=gettext("Discard"),
    )


def resend(
    parcels: Sequence[Parcel], fields: tuple[tuple[str, str], ...], refused: Sequence[tuple[Letter, str]]
) -> Step:
    """Ask whether to send dead letters again. The admin itself sends them: some may be gone by then."""
    question = ngettext(
        "Send %(count)d dead letter again? Real clients get it.",
        "Send %(count)d dead letters again? Real clients get them.",
        len(parcels),
    )
    details = [(each.parsed.event, f"{each.letter.at}: {_audience(each.parsed)}") for each in parcels]
    if len(parcels) == 1:
        details.append((gettext("Message"), printable(msgspec.json.format(parcels[0].encoded, indent=2))))
    details += [(gettext("Not sent"), f"{letter.at}: {reason}") for letter, reason in refused]
    return Step(
        permission=RESEND,
        title=gettext("Send dead letters again"),
        question=question % {"count": len(parcels)},
        warning=gettext("A handler had failed; clients have got the message, and may get it twice.")
        if any(each.letter.code == HANDLED for each in parcels)
        else "",
        details=tuple(details),
        do=lambda: None,
        about=(),
        entry="",
        done="",
        back=reverse("admin:presence_deadletter_changelist"),
        fields=fields,
        button=gettext("Send again"),
    )


def _user(namespace: str, user_id: str) -> Live:
    return Live(id=f"{namespace} user:{user_id}")


def _rooms(delivery: BusMessage) -> str:
    return ", ".join(f"{namespace} {room}" for namespace, room in delivery.targets)


def _audience(delivery: BusMessage) -> str:
    return _rooms(delivery) or gettext("control event")


def _connections(**query: str) -> str:
    return f"{reverse('admin:presence_live_changelist')}?{urlencode(query)}"
