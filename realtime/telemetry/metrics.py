"""The metrics at `/metrics`. docs/metrics.md describes them all.

The values of labels come from the catalogue and the protocol: never a user, a room, a connection, or a name that a
client made up.

With several workers every metric is kept in a file of its worker (prometheus_client's multi-process mode, chosen by
`PROMETHEUS_MULTIPROC_DIR` before this module is imported). A scrape adds them up, so each gauge states how.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from realtime.protocol.close_codes import LOST, NO_CODE, CloseCode
from realtime.protocol.publication import Publication

if TYPE_CHECKING or find_spec("prometheus_client"):
    from prometheus_client import Counter, Gauge, Histogram
else:
    from realtime.telemetry.unmeasured import Counter, Gauge, Histogram

_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds, for what should take almost no time."""
_SLOW = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds, for what may have to catch up."""
_CROWDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)


class Tallied(Histogram):
    """A histogram that also takes many observations at once, already counted."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add `counts`, one for each bucket (one more than there are bounds); `total` is the sum of all values."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


# --- Connections -------------------------------------------------------------------------------------

INSTANCE = Gauge(
    "realtime_instance_info",
    "1: the id by which logs, the admin and Redis know the instance, and its version",
    ["id", "version"],
    multiprocess_mode="livemax",
)
CONNECTIONS = Gauge("realtime_connections", "Open connections", ["namespace"], multiprocess_mode="livesum")
USERS = Gauge(
    "realtime_users", "Users with a connection to the process", ["namespace"], multiprocess_mode="livesum"
)
HANDSHAKES = Counter("realtime_handshakes", "Handshakes by result", ["namespace", "result"])
CLOSES = Counter(
    "realtime_closes", "Connections that ended, by the side that ended them and close code", ["by", "code"]
)
FRAMES_IN = Counter("realtime_frames_in", "Valid frames from clients", ["event"])
FRAMES_OUT = Counter("realtime_frames_out", "Frames to clients", ["kind", "event"])
ERRORS = Counter("realtime_errors", "Refused frames, by error code", ["code"])
RECOVERIES = Counter(
    "realtime_recoveries", "Rooms that clients came back to with an offset, by outcome", ["outcome"]
)
GAPS = Counter("realtime_gaps", "Rooms in which a client lost something for good", ["reason"])
QUEUE_BYTES = Gauge(
    "realtime_queue_bytes", "Bytes that wait for clients that read too slowly", multiprocess_mode="livesum"
)
BEHIND = Gauge("realtime_behind", "Connections whose clients read too slowly", multiprocess_mode="livesum")
EPHEMERAL_DROPPED = Counter(
    "realtime_ephemeral_dropped", "Typing and cursor events not sent to clients that read too slowly"
)
DROPPED = Counter("realtime_channel_overflows", "Channels whose queue was full")

# --- Fan-out -----------------------------------------------------------------------------------------

DELIVERIES = Counter("realtime_deliveries", "Publications handed to connections")
FANOUT_SIZE = Tallied("realtime_fanout_connections", "Connections that received a fan-out", buckets=_CROWDS)
FANOUT_SECONDS = Histogram(
    "realtime_fanout_seconds", "From the first connection of a large fan-out to the last", buckets=_FAST
)

# --- Bridge ------------------------------------------------------------------------------------------

BUS_MESSAGES = Counter("realtime_bus_messages", "Bus messages that the bridge took, by result", ["result"])
BUS_LAG = Histogram(
    "realtime_bus_lag_seconds",
    "From XADD until an entry was published to its rooms, of the oldest entry of a batch",
    buckets=_SLOW,
)
DEAD_LETTERS = Counter(
    "realtime_dead_letters", "Bus messages that could not be delivered, by reason", ["reason"]
)
LEADING = Gauge(
    "realtime_bridge_leading",
    "1 for the leader, 0 for a standby",
    multiprocess_mode="livemax",
)
PRESENT = Gauge(
    "realtime_presence_users",
    "Users who are shown as present, by status",
    ["namespace", "status"],
    multiprocess_mode="livemax",
)
SWEEP_LAG = Histogram(
    "realtime_sweep_lag_seconds", "How late the most overdue decision of a sweep was", buckets=_SLOW
)

# --- Outbox ------------------------------------------------------------------------------------------

OUTBOX_BACKLOG = Gauge(
    "realtime_outbox_backlog", "Messages in the outbox", ["database"], multiprocess_mode="livemax"
)
OUTBOX_AGE = Gauge(
    "realtime_outbox_oldest_seconds",
    "Age of the oldest message in the outbox",
    ["database"],
    multiprocess_mode="livemax",
)
OUTBOX_SENT = Counter("realtime_outbox_sent", "Messages that relays have sent", ["database"])
OUTBOX_FAILURES = Counter(
    "realtime_outbox_failures", "Attempts of relays at which Redis or the database failed", ["database"]
)

# --- The process -------------------------------------------------------------------------------------

REDIS_UP = Gauge("realtime_redis_up", "1 while Redis answers", multiprocess_mode="livemin")
REDIS_SECONDS = Histogram("realtime_redis_round_trip_seconds", "A PING and its answer", buckets=_FAST)
LOOP_LAG = Histogram("realtime_loop_lag_seconds", "How late the event loop ran a timer", buckets=_FAST)
TASK_FAILURES = Counter(
    "realtime_task_failures",
    "Unexpected errors in tasks that run all the time and go on after an error",
    ["task"],
)
TASKS = Gauge("realtime_tasks", "Tasks in the event loop", multiprocess_mode="livesum")


@cache
def handshakes(namespace: str, result: str) -> Counter:
    """`HANDSHAKES` of one namespace and result, looked up once."""
    return HANDSHAKES.labels(namespace, result)


@cache
def connections(namespace: str) -> Gauge:
    """`CONNECTIONS` of one namespace, looked up once."""
    return CONNECTIONS.labels(namespace)


@cache
def users(namespace: str) -> Gauge:
    """`USERS` of one namespace, looked up once."""
    return USERS.labels(namespace)


@cache
def frames_in(event: str) -> Counter:
    """`FRAMES_IN` of one event of the catalogue, looked up once."""
    return FRAMES_IN.labels(event)


@cache
def frames_out(kind: str, event: str) -> Counter:
    """`FRAMES_OUT` of one kind and event, looked up once."""
    return FRAMES_OUT.labels(kind, event)


_EVENT = re.compile(rb"[a-z][a-z0-9_-]*(:[a-z][a-z0-9_-]*)?")
_CODES = frozenset({*CloseCode, NO_CODE, LOST, 1001, 1003, 1008, 1010})


def closed(by: str, code: int) -> None:
    """Count the end of a connection. All codes that are not known count as `other`."""
    CLOSES.labels(by, str(int(code)) if code in _CODES else "other").inc()


# --- What happens too often for one increment each ---------------------------------------------------


class Tally:
    """Counts fan-outs in plain numbers until `flush`: a counter of Prometheus takes several times as long."""

    __slots__ = ("_frames", "_published", "_sizes")

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._sizes: defaultdict[int, int] = defaultdict(int)
        self._published: defaultdict[bytes, int] = defaultdict(int)
        self._frames: defaultdict[tuple[str, bytes], int] = defaultdict(int)

    def fan_out(self, publications: Sequence[Publication], receivers: int) -> None:
        """Count publications that were handed to connections."""
        self._sizes[receivers] += 1
        published = self._published
        for publication in publications:
            frame = publication.frame
            published[frame[10 : frame.find(b'"', 10)]] += receivers  # `event_of`, for less

    def sent(self, kind: str, frame: bytes, connections: int = 1) -> None:
        """Count a frame that was sent to connections."""
        self._frames[kind, event_of(frame)] += connections

    def flush(self) -> None:
        """Add the counts to the metrics, and begin again at zero."""
        for event, count in self._published.items():
            DELIVERIES.inc(count)
            frames_out("room", _word(event)).inc(count)
        sizes = [0] * (len(_CROWDS) + 1)
        for size, count in self._sizes.items():
            sizes[bisect_left(_CROWDS, size)] += count
        FANOUT_SIZE.add(sizes, sum(size * count for size, count in self._sizes.items()))
        for (kind, event), count in self._frames.items():
            frames_out(kind, _word(event)).inc(count)
        self._reset()


tally = Tally()


def _word(event: bytes) -> str:
    """The event as a label; `other` for a frame of another program."""
    return event.decode() if _EVENT.fullmatch(event) else "other"


def event_of(frame: bytes) -> bytes:
    """The name of the event in a frame that `realtime.protocol.envelope` wrote (`{"event":"…`); else `other`."""
    end = frame.find(b'"', 10)
    return frame[10:end] if end > 0 and frame.startswith(b'{"event":"') else b"other"
