"""Dead letters: what could not be delivered, kept with its reason."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any

from realtime.bridge.bus_entry import BusEntry
from realtime.protocol.bus_message import InvalidMessage
from realtime.redis.client import key
from realtime.redis.pipelining import Pipes
from realtime.telemetry import metrics

logger = logging.getLogger(__name__)

DEAD_LETTERS = 1000
"""About so many are kept."""
DEAD_LETTER_BYTES = 4096
"""So much is kept of each message."""


def dead_letter(pipes: Pipes, message: BusEntry, error: InvalidMessage) -> Awaitable[Any]:
    """Keep a message that can't be delivered. It is on its way when this returns; await it to be sure."""
    metrics.BUS_MESSAGES.labels("dead").inc()
    metrics.DEAD_LETTERS.labels(error.code).inc()
    reason = str(error)[:500]
    logger.warning("dead letter", extra={"source": message.source, "reason": reason})
    return pipes.to(key("dead")).send(
        *("XADD", key("dead"), "MAXLEN", "~", DEAD_LETTERS, "*"),
        *("reason", reason.encode(errors="backslashreplace"), "source", message.source),
        *("message", message.raw[:DEAD_LETTER_BYTES]),
    )
