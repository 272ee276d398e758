"""Operators who work in the admin, and what they see."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client

from realtime.redis.client import key, sync_client


def operator(client: Client, *permissions: str) -> User:
    """A member of the staff with exactly these permissions, signed in."""
    user = User.objects.create_user(f"operator{User.objects.count()}", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    assert user.user_permissions.count() == len(permissions)
    client.force_login(user)
    return user


def published() -> list[tuple[str, dict[str, Any]]]:
    """What went onto the durable stream."""
    entries: Any = sync_client().xrange(key("stream"))
    found = [json.loads(fields[b"message"]) for _, fields in entries]
    return [(message["event"], message["data"]) for message in found]


def texts(response: Any) -> list[str]:
    """The messages at the top of the page."""
    return [str(message) for message in response.context["messages"]]


def logged() -> list[tuple[str, str]]:
    """The log of actions, newest last: about what, and what."""
    return [*LogEntry.objects.order_by("pk").values_list("object_repr", "change_message")]


def text_of(response: Any) -> str:
    """What a page says, without its tags."""
    body = re.sub(r"<[^>]*>", " ", response.content.decode())
    return re.sub(r"\s+", " ", unescape(body))
