"""This project: socket server and bridge, default settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench import wires
from bench.publishing import Command
from bench.systems.base import KEY, ROOT, Peer, Program


class Ours(Peer):
    name = "ours"
    title = "this project"
    wire = wires.Ours()
    guarantee = "exactly once, in order, recoverable"
    scenarios = "abcdefg"

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
        # What `realtime.publisher.publish` writes: durable, with an id of its own.
        message = {"event": event, "data": data, "id": uuid4().hex}
        return "XADD", "bench:stream", "*", "message", json.dumps(message, separators=(",", ":"))
