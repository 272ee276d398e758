"""This project: socket server and bridge with default settings, and with the bridge inside the socket server."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench import wires
from bench.publishing import Command
from bench.systems.base import KEY, Peer, Program, numbered


class Ours(Peer):
    name = "ours"
    title = "this project"
    wire = wires.Ours()
    guarantee = "exactly once, in order, recoverable"
    scenarios = "abcdefghij"

    def programs(self, scenario: str, ports: Sequence[int], redis: Path) -> list[Program]:
        env = {
            "REDIS_URL": f"unix://{redis}",
            "REALTIME_PREFIX": "bench",
            "SECRET_KEY": KEY,
            "JWT_SIGNING_KEY": KEY,
            "ALLOWED_ORIGINS": "http://bench.test",
            "ALLOWED_HOSTS": "127.0.0.1",
        }
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
