"""The users of the demo's desk, and what is published about what they do."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth.models import User
from rest_framework.test import APIClient

from demo.views import DeskTokenSerializer
from realtime.redis.client import key, sync_client

CONVERSATIONS = "/demo/conversations/"


class Person:
    """A user of the desk, with an access token for the socket."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.id = str(user.pk)
        self.http = APIClient()
        self.http.credentials(HTTP_AUTHORIZATION=f"Bearer {token_of(user)}")

    def get(self, path: str) -> Any:
        return self.http.get(CONVERSATIONS + path)

    def post(self, path: str, **data: Any) -> Any:
        return self.http.post(CONVERSATIONS + path, data, format="json")

    def opens(self, topic: str = "My invoice") -> str:
        """Open a chat; returns its id."""
        answer = self.post("", topic=topic)
        assert answer.status_code == 201, answer.json()
        return answer.json()["thread_id"]

    def sees(self) -> list[str]:
        return [found["thread_id"] for found in self.get("").json()["conversations"]]


def token_of(user: User) -> str:
    return str(DeskTokenSerializer.get_token(user).access_token)


def stream() -> list[dict[str, Any]]:
    """What has been appended to the durable stream so far, in order."""
    return [json.loads(fields[b"message"]) for _, fields in sync_client().xrange(key("stream"))]


def published() -> list[tuple[str, dict[str, Any]]]:
    """The events on the stream, with their data."""
    return [(message["event"], message["data"]) for message in stream()]


def routes(event: str) -> list[tuple[Any, Any]]:
    """Where the messages of an event were sent: rooms and namespaces, None for the event's own."""
    found = [message for message in stream() if message["event"] == event]
    return [(message.get("rooms"), message.get("namespaces")) for message in found]


def bodies(person: Person, thread: str) -> list[str]:
    return [message["body"] for message in person.get(f"{thread}/").json()["messages"]]
