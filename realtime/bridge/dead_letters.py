"""Messages that cannot be delivered: those of a stream are kept as dead letters, those of Pub/Sub may be dropped."""

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
"""About as many dead letters are kept."""
DEAD_LETTER_BYTES = 4096
"""Bytes that are kept of each message."""

_DROPPED = metrics.BUS_MESSAGES.labels("dropped")


def dead_letter(pipes: Pipes, entry: BusEntry, error: InvalidMessage) -> Awaitable[Any]:
    """Keep an entry that cannot be delivered. It is on its way when this returns; await it to be sure."""
    metrics.BUS_MESSAGES.labels("dead").inc()
    metrics.DEAD_LETTERS.labels(error.code).inc()
    reason = str(error)[:500]
    logger.warning("dead letter", extra={"source": entry.source, "reason": reason})
    return pipes.to(key("dead")).send(
        *("XADD", key("dead"), "MAXLEN", "~", DEAD_LETTERS, "*"),
        *("reason", reason.encode(errors="backslashreplace"), "source", entry.source),
        *("message", entry.raw[:DEAD_LETTER_BYTES]),
    )


def drop(count: int, reason: str) -> None:
    """Log and count messages of Pub/Sub that are lost, since nothing keeps them."""
    _DROPPED.inc(count)
    logger.warning("dropped", extra={"messages": count, "reason": reason})
