"""This project: with default settings, with the bridge inside the socket server, and published to directly."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import django

from bench import wires
from bench.publishing import Command
from bench.systems.base import KEY, Peer, Program, numbered
from realtime.layers.direct import direct
from realtime.redis.appending import Direct

SETTINGS = {
    "REALTIME_PREFIX": "bench",
    "SECRET_KEY": KEY,
    "JWT_SIGNING_KEY": KEY,
    "ALLOWED_ORIGINS": "http://bench.test",
    "ALLOWED_HOSTS": "127.0.0.1",
}


class Ours(Peer):
    name = "ours"
    title = "this project"
    wire = wires.Ours()
    guarantee = "exactly once, in order, recoverable"
    scenarios = "abcdefghij"

    def programs(self, scenario: str, ports: Sequence[int], redis: Path) -> list[Program]:
        env = {**SETTINGS, "REDIS_URL": f"unix://{redis}"}
        programs = [
            Program(
                numbered("sockets", index),
                (sys.executable, "manage.py", "runsockets"),
                {**env, "SOCKETS_PORT": str(port)},
                ready="ready\n",
            )
            for index, port in enumerate(ports)
        ]
        return [
            *programs,
            Program("bridge", (sys.executable, "manage.py", "runbridge"), env, ready="ready\n"),
        ]

    def command(self, scenario: str, event: str, data: Mapping[str, Any]) -> Command:
        # As `realtime.publisher.publish` writes it: durable, with an id.
        message = {"event": event, "data": data, "id": uuid4().hex}
        return "XADD", "bench:stream", "*", "message", json.dumps(message, separators=(",", ":"))


class OursInOne(Ours):
    """The same without a process for the bridge."""

    name = "ours-one"
    title = "this project, bridge inside"

    def programs(self, scenario: str, ports: Sequence[int], redis: Path) -> list[Program]:
        *servers, _ = super().programs(scenario, ports, redis)
        environment = {"REALTIME_EMBEDDED_BRIDGE": "1"}
        return [replace(server, env={**server.env, **environment}) for server in servers]


class OursDirect(Ours):
    """The same with backbones that publish directly (`PUBLISH_DIRECTLY`); socket server and bridge are as before."""

    name = "ours-direct"
    title = "this project, published directly"

    def script(self) -> bytes:
        text = _backbone()(b'{"event": "chat:ended", "data": {"thread_id": 1}, "id": 1}').script.script
        return text if isinstance(text, bytes) else str(text).encode()

    def command(self, scenario: str, event: str, data: Mapping[str, Any]) -> Command:
        *_, message = super().command(scenario, event, data)
        by_hash, _ = _backbone()(str(message).encode()).commands()
        return tuple(by_hash)  # type: ignore[arg-type]


@cache
def _backbone() -> Callable[[bytes], Direct]:
    """Make this process a backbone, and return what it sends for a message."""
    os.environ |= {
        **SETTINGS,
        "REALTIME_PUBLISH_DIRECTLY": "1",
        "DJANGO_SETTINGS_MODULE": "realtime.settings.sockets",
    }
    django.setup()

    def sent(message: bytes) -> Direct:
        found = direct([message])
        if found is None:
            raise RuntimeError("the message cannot be published directly")
        return found

    return sent
