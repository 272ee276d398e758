"""An event, as the program that uses the client reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the server, or one of the client's own.

    The client's own events are:

    * `room:joined {room}`: a room was entered, and everything published in it from here on is passed on;
    * `room:left {room, reason}`: also for a room that was refused;
    * `room:gap {room, reason}`: also for a room that could not be recovered;
    * `error {code, message}`: also for an event that waited, and is larger than the server allows;
    * `connection:refused {status, code, message}`: a handshake was refused, with this HTTP status and error code;
    * `connection:lost {code, reason, retry_in}`: a connection, or an attempt to get one, has ended, and the next
      attempt follows in `retry_in` seconds. `code` is a close code, the HTTP status of a refused handshake, or None.

    Attributes:
        name: Its name in the catalogue.
        data: Its payload.
        room: The room it was published in, if it was.
        offset: Its place in the history of that room, if it has one.
    """

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    room: str | None = None
    offset: str | None = None
