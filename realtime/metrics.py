"""What `/metrics` tells, in Prometheus' words."""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Gauge

CONNECTIONS = Gauge("realtime_connections", "Open connections", ["namespace"])
HANDSHAKES = Counter("realtime_handshakes", "Handshakes by result", ["namespace", "result"])
FRAMES_IN = Counter("realtime_frames_in", "Valid frames from clients", ["event"])
FRAMES_OUT = Counter("realtime_frames_out", "Frames to clients", ["kind"])
ERRORS = Counter("realtime_errors", "Frames refused, by error code", ["code"])
CLOSES = Counter("realtime_closes", "Connections closed by the server, by close code", ["code"])
BUS_MESSAGES = Counter("realtime_bus_messages", "Messages the bridge took from the bus", ["result"])
DEAD_LETTERS = Counter("realtime_dead_letters", "Messages that were not valid", ["reason"])
DROPPED = Counter("realtime_channel_overflows", "Channels whose queue was full")
GAPS = Counter("realtime_gaps", "Rooms in which something was lost for good")
EPHEMERAL_DROPPED = Counter(
    "realtime_ephemeral_dropped", "Typing and the like not sent to clients that do not keep up"
)
DELIVERIES = Counter("realtime_deliveries", "Publications handed to connections")


TASKS = Gauge("realtime_tasks", "Tasks in the event loop of this process")


@cache
def frames_in(event: str) -> Counter:
    """`FRAMES_IN` of one event of the catalogue, looked up once."""
    return FRAMES_IN.labels(event)


@cache
def frames_out(kind: str) -> Counter:
    """`FRAMES_OUT` of one kind, looked up once."""
    return FRAMES_OUT.labels(kind)
