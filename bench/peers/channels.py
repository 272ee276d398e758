"""Plain Channels: stock consumer, stock layer, a JWT middleware."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import django
import jwt
from django.conf import settings

settings.configure(
    SECRET_KEY=os.environ["BENCH_KEY"],
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["channels"],
    DATABASES={},
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [{"address": f"unix://{os.environ['BENCH_REDIS']}"}]},
        }
    },
)
django.setup()

from channels.generic.websocket import AsyncJsonWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402


class JWTMiddleware:
    """Return the user of `Authorization: Bearer`; None without a valid token."""

    def __init__(self, inner: Callable[..., Awaitable[None]]) -> None:
        self.inner = inner

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        header = dict(scope["headers"]).get(b"authorization", b"").decode()
        try:
            user = jwt.decode(header.removeprefix("Bearer "), settings.SECRET_KEY, ["HS256"])
        except jwt.InvalidTokenError:
            user = None
        await self.inner({**scope, "user": user}, receive, send)


class Consumer(AsyncJsonWebsocketConsumer):
    async def connect(self) -> None:
        self.user = self.scope["user"]
        self.threads: set[str] = set()
        if self.user is None:
            await self.close()
            return
        await self.channel_layer.group_add(f"user.{self.user['user_id']}", self.channel_name)
        await self.accept()
        await self.send_json({"event": "ready"})

    async def disconnect(self, code: int) -> None:
        if self.user is None:
            return
        for group in (f"user.{self.user['user_id']}", *(f"thread.{thread}" for thread in self.threads)):
            await self.channel_layer.group_discard(group, self.channel_name)

    async def receive_json(self, content: dict[str, Any], **_: Any) -> None:
        thread = content["thread_id"]
        if content["event"] == "join":
            if thread not in self.user["threads"]:
                await self.send_json({"event": "forbidden"})
                return
            self.threads.add(thread)
            await self.channel_layer.group_add(f"thread.{thread}", self.channel_name)
            await self.send_json({"event": "joined"})
        elif content["event"] == "typing" and thread in self.threads:
            data = {
                "thread_id": thread,
                "user_id": self.user["user_id"],
                "name": self.user["name"],
                "typing": content["typing"],
            }
            await self.channel_layer.group_send(
                f"thread.{thread}",
                {
                    "type": "to.client",
                    "frame": {"event": "thread:typing", "data": data},
                    "sender": self.channel_name,
                },
            )

    async def to_client(self, message: dict[str, Any]) -> None:
        if message["sender"] != self.channel_name:
            await self.send_json(message["frame"])


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """Refuse plain HTTP."""
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


application = ProtocolTypeRouter(
    {"http": nothing, "websocket": JWTMiddleware(URLRouter([path("ws/", Consumer.as_asgi())]))}
)
