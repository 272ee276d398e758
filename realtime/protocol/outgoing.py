"""The data of events that handlers send: checked and spelled like the data of events that a backbone publishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from realtime.protocol import values
from realtime.protocol.catalogue import catalogue
from realtime.protocol.payloads import InvalidPayload
from realtime.protocol.respelling import conform

OutgoingData = Mapping[str, Any] | msgspec.Raw


def outgoing(event: str, data: Mapping[str, object]) -> OutgoingData:
    """The data of an event as clients get it; of an event that is not in the catalogue, any JSON.

    Raises:
        InvalidPayload: When the data does not fit the event's payload. The text names the event and the field.
        NotJSON: When JSON has no form for a value.
    """
    declared = catalogue().server.get(event)
    encoded = values.encode(data)
    if declared is None:
        return msgspec.Raw(encoded)
    try:
        return conform(declared.payload, encoded)
    except InvalidPayload as error:
        raise InvalidPayload(f"{event}: {error}") from error
