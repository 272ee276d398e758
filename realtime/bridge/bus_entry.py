"""Bus entries: what arrives on the bus, in an entry of a stream or over Pub/Sub, and the bus messages that it holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from realtime.layers.history import NO_LEASE, Lease
from realtime.protocol import bus_message
from realtime.protocol.bus_message import BusMessage, InvalidMessage
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

KEEP_SECONDS = 600.0
"""Entries behind the cursor are kept for at least this long."""
CHANNEL = "events"
"""The Pub/Sub channel, below the prefix."""


class BusEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What arrived: valid messages, or an `error` that says why there are none."""

    source: str
    raw: bytes
    messages: Sequence[BusMessage] = ()
    error: InvalidMessage | None = None
    id: bytes = b""
    """The id of the stream's entry; empty when Pub/Sub brought it."""
    order: str = ""
    """When it was added, as text that sorts: milliseconds, and a number among those of the same millisecond."""
    is_repeated: bool = False
    """It was delivered before: its handlers have run, and a room that was entered since then has not missed it."""
    term: Lease = NO_LEASE
    """The term of leading in which it arrived over Pub/Sub."""

    @property
    def at(self) -> float:
        """When it was added, in seconds of Redis' clock."""
        if self.id:
            return (milliseconds(self.id) + 1) / 1000
        return (int(self.order[:20]) * 1000 + int(self.order[21:])) / 1e6

    def added_at(self, microseconds: int) -> BusEntry:
        """The same with the time at which Pub/Sub brought it, which orders it among the entries of streams."""
        order = f"{microseconds // 1000:020d}-{microseconds % 1000:020d}"
        return msgspec.structs.replace(self, order=order)


@dataclass(frozen=True, slots=True)
class Source:
    """A stream that the bridge reads: its name below the prefix, the field to read, and how to decode that field."""

    name: str
    field: bytes
    decode: Callable[[bytes], Sequence[BusMessage]]
    keep: float = KEEP_SECONDS
    is_public: bool = False
    """Backbones write it (`realtime.bridge.guard`)."""

    def entry(self, entry_id: bytes, fields: Sequence[bytes], again: str = "") -> BusEntry:
        """An entry of the stream; those up to `again` were delivered before."""
        raw, order = _field(fields, self.field), entry_order(entry_id)
        messages, error = self.read(raw)
        return BusEntry(
            source=self.name,
            raw=repr(fields).encode() if raw is None else raw,
            messages=messages,
            error=error,
            id=entry_id,
            order=order,
            is_repeated=order <= again,
        )

    def read(self, raw: bytes | None) -> tuple[Sequence[BusMessage], InvalidMessage | None]:
        """The messages in a field, or why it holds none."""
        try:
            if raw is None:
                raise InvalidMessage("invalid_message", f"the entry has no field {self.field.decode()!r}")
            return self.decode(raw), None
        except InvalidMessage as error:
            return (), error.untraced()
        except Exception as error:
            logger.exception("event failed")
            return (), InvalidMessage("event_failed", spelled(error))


BUS = Source("stream", b"message", lambda raw: (bus_message.parse(raw),), is_public=True)


def published(raw: bytes, term: Lease = NO_LEASE) -> BusEntry:
    """A message that arrived over Pub/Sub in a term. It has no time yet: `added_at`."""
    messages, error = BUS.read(raw)
    return BusEntry(source=CHANNEL, raw=raw, messages=messages, error=error, term=term)


def entry_order(entry_id: bytes) -> str:
    """The id of a stream's entry as text that sorts like it."""
    time, _, sequence = entry_id.decode().partition("-")
    return f"{time.zfill(20)}-{sequence.zfill(20)}"


def milliseconds(entry_id: bytes) -> int:
    """When an entry of a stream was added, since the epoch."""
    return int(entry_id.partition(b"-")[0])


def _field(fields: Sequence[bytes], name: bytes) -> bytes | None:
    """A field of a stream's entry, which is a list of names and values."""
    return fields[1] if fields[0] == name else dict(zip(fields[::2], fields[1::2], strict=True)).get(name)
