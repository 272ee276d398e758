"""The Python client: a program of its own, which knows the wire protocol and nothing of the server."""

from realtime.client.client import CallFailed, Client, Denied, Event, backoff

__all__ = ["CallFailed", "Client", "Denied", "Event", "backoff"]
