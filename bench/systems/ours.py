"""This project: socket server and bridge with default settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench import wires
from bench.publishing import Command
from bench.systems.base import KEY, ROOT, Peer, Program, free_port


class Ours(Peer):
    name = "ours"
    title = "this project"
    wire = wires.Ours()
    guarantee = "exactly once, in order, recoverable"
    scenarios = "abcdefgh"

    def programs(self, scenario: str, port: int, redis: Path) -> list[Program]:
        env = {
            "REDIS_URL": f"unix://{redis}",
            "REALTIME_PREFIX": "bench",
            "SECRET_KEY": KEY,
            "JWT_SIGNING_KEY": KEY,
            "ALLOWED_ORIGINS": "http://bench.test",
            "ALLOWED_HOSTS": "127.0.0.1",
            "SOCKETS_PORT": str(port),
        }
        return [
            Program(name, (sys.executable, str(ROOT / "manage.py"), command), env, ready="ready\n")
            for name, command in (("sockets", "runsockets"), ("bridge", "runbridge"))
        ]

    def command(self, scenario: str, event: str, data: Mapping[str, Any]) -> Command:
        # As `realtime.publisher.publish` writes it: durable, with an id.
        message = {"event": event, "data": data, "id": uuid4().hex}
        return "XADD", "bench:stream", "*", "message", json.dumps(message, separators=(",", ":"))


class OursWithAnother(Ours):
    """The same beside a second socket server without clients: typing has to go through Redis, as in a cluster."""

    name = "ours-two"
    title = "this project, one of two servers"
    scenarios = "c"
    reference = True

    def programs(self, scenario: str, port: int, redis: Path) -> list[Program]:
        programs = super().programs(scenario, port, redis)
        sockets = programs[0]
        second = {**sockets.env, "SOCKETS_PORT": str(free_port())}
        return [*programs, replace(sockets, name="second", env=second)]
