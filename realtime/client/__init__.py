"""The Python client: it connects, comes back after a loss, resumes its rooms, and reports what was missed.

It is a program of its own that knows the wire protocol (docs/protocol.md) and needs `websockets` only; the folder may
be copied under any name. Nothing here imports the server, and nothing of the server imports this.
"""

from .client import Client
from .errors import CallFailed, Denied
from .event import Event
from .retries import backoff

__all__ = ["CallFailed", "Client", "Denied", "Event", "backoff"]
