"""The Python client: it connects, comes back after a loss, resumes its rooms, and reports what was missed.

It is a program of its own that knows the wire protocol (docs/protocol.md) and needs `websockets` only. Nothing here
imports the server, and nothing of the server imports this.
"""

from realtime.client.client import CallFailed, Client, Denied, Event, backoff

__all__ = ["CallFailed", "Client", "Denied", "Event", "backoff"]
