"""Dead letters in Redis: read, discarded, and sent again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from django.utils.translation import gettext_lazy as _

from presence.admin.display import instant, moment
from realtime.bridge.bus_entry import BUS, CHANNEL
from realtime.bridge.dead_letters import DEAD_LETTER_BYTES
from realtime.protocol import bus_message
from realtime.protocol.bus_message import BusMessage
from realtime.protocol.surrogates import whole_json
from realtime.redis.client import key, location, run_sync, script, sync_client

REASONS: Mapping[str, Any] = {
    "too_large": _("The message is too large."),
    "invalid_json": _("The message is not JSON."),
    "invalid_message": _("A key of the message has a value that is not valid, or is missing."),
    "invalid_payload": _("The data does not fit the event."),
    "unknown_event": _("The event is not known."),
    "client_event": _("Only clients send this event."),
    "not_publishable": _("Only the socket server sends this event."),
    "no_audience": _("The event reaches none of the rooms."),
    "too_many_rooms": _("The message goes to too many rooms."),
    "handler_failed": _("A handler failed. Clients have got the message nevertheless."),
    "event_failed": _("The code of the event failed."),
    "refused": _("Redis or the database refuses the message."),
    "below_cursor": _("The id of the entry had been passed already."),
    "invalid_transition": _("The change of presence is not valid."),
}
"""What the code at the beginning of a reason means (docs/protocol.md, under dead letters)."""

HANDLED = "handler_failed"
"""The reason of a message that clients have got."""

_RESEND = script(Path(__file__).parents[1] / "scripts/resend.lua")


@dataclass(frozen=True, slots=True)
class Letter:
    """One entry of the stream of dead letters."""

    id: str
    at: str
    reason: str
    """As it was written: a code, a colon, and what was wrong in English."""
    source: str
    raw: bytes
    """The beginning of the message, up to 4 KiB."""

    @property
    def code(self) -> str:
        """The code of the reason."""
        return self.reason.partition(":")[0]

    @property
    def meaning(self) -> Any:
        """The reason in the reader's language; empty for one that this version does not know."""
        return REASONS.get(self.code, "")

    @property
    def message(self) -> str:
        """The message as it is shown."""
        return printable(self.raw)

    @property
    def is_of_bus(self) -> bool:
        """Whether the message came over the bus, and so can be sent there again."""
        return self.source in {BUS.name, CHANNEL}

    @property
    def is_cut(self) -> bool:
        """Whether the end of the message is missing."""
        return len(self.raw) >= DEAD_LETTER_BYTES and not _is_json(self.raw)

    @property
    def event(self) -> str:
        """The event that the message names, as far as it can be read."""
        try:
            return msgspec.json.decode(self.raw, type=_Named).event
        except msgspec.DecodeError:
            return ""

    @property
    def editable(self) -> str:
        """The message in a form for people: JSON in lines, anything else as it is."""
        raw = msgspec.json.format(self.raw, indent=2) if _is_json(self.raw) else self.raw
        return printable(raw)


class _Named(msgspec.Struct):
    event: str = ""


def _is_json(raw: bytes) -> bool:
    try:
        msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def printable(raw: bytes | str) -> str:
    """Text that is safe to show and to store: characters that are not printable are escaped, as in JSON.

    A response cannot hold half of a surrogate pair, and PostgreSQL no NUL.
    """
    text = raw if isinstance(raw, str) else raw.decode(errors="backslashreplace")
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


# --- Reading and discarding ------------------------------------------------------------------------


def read(count: int, *, before: str = "", after: str = "") -> list[Letter]:
    """Up to `count` letters, newest first: those older than `before`, or the next ones newer than `after`.

    Raises `redis.RedisError`.
    """
    if after:
        entries: Any = sync_client().xrange(key("dead"), min=f"({after}", count=count)
        entries = entries[::-1]
    else:
        entries = sync_client().xrevrange(key("dead"), max=f"({before}" if before else "+", count=count)
    return [_letter(*entry) for entry in entries]


def read_these(ids: Sequence[str]) -> list[Letter]:
    """Those of these letters that are still there, by one round trip. Raises `redis.RedisError`."""
    pipeline = sync_client().pipeline(transaction=False)
    for each in ids:
        pipeline.xrange(key("dead"), each, each)
    return [_letter(*entry) for entries in pipeline.execute() for entry in entries]


def discard(ids: Sequence[str]) -> None:
    """Remove letters from the stream. Raises `redis.RedisError`."""
    sync_client().xdel(key("dead"), *ids)


def _letter(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Letter:
    id = entry_id.decode()
    return Letter(
        id=id,
        at=moment(instant(int(id.partition("-")[0]) / 1000)),
        reason=printable(fields.get(b"reason", b"")),
        source=printable(fields.get(b"source", b"")),
        raw=fields.get(b"message", b""),
    )


# --- Sending again -----------------------------------------------------------------------------------


def prepare(letter: Letter, raw: bytes) -> tuple[bytes, BusMessage]:
    """A message as it goes back onto the bus, with an idempotency key. Raises `InvalidMessage`.

    A message whose handler failed gets another key than it had: the bridge has handled that one, and would drop it.
    """
    parsed = bus_message.parse(raw)
    if parsed.id is not None and letter.code != HANDLED:
        return raw, parsed
    fields = msgspec.json.decode(whole_json(raw.decode()), type=dict[str, msgspec.Raw])
    # The rest of it stays as it is, to the last digit of a number.
    fields["id"] = msgspec.Raw(msgspec.json.encode(f"dead-{letter.id}"))
    encoded = msgspec.json.encode(fields)
    return encoded, bus_message.parse(encoded)


def send_again(messages: Mapping[str, bytes]) -> set[str]:
    """Put messages onto the bus in place of the letters with these ids; returns the ids of those that were sent.

    A letter that is not there any more was sent or discarded by another operator, or pushed out by newer ones: it is
    left out. Raises `redis.RedisError`; then those that are gone were sent.
    """
    if location().nodes:
        return {letter_id for letter_id, message in messages.items() if _send_again(letter_id, message)}
    arguments = [key("stream"), *(argument for letter in messages.items() for argument in letter)]
    # The client repeats a call whose connection was lost: the repetition finds the answer of the first one.
    answer: bytes = run_sync(_RESEND, [key("dead"), key("answers", uuid4().hex)], arguments)
    return {letter_id for letter_id, moved in zip(messages, answer.split(), strict=True) if moved == b"1"}


def _send_again(letter_id: str, message: bytes) -> bool:
    """The same in a Cluster, whose servers share no script: the bridge drops what is sent twice within ten minutes."""
    if not sync_client().xrange(key("dead"), letter_id, letter_id):
        return False
    sync_client().xadd(key("stream"), {"message": message})
    sync_client().xdel(key("dead"), letter_id)
    return True
