"""Socket.IO on Node, with the Redis adapter; for recovery with the Redis Streams adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from bench import wires
from bench.publishing import Command
from bench.systems.base import KEY, PROGRAMS, Peer, Program, numbered

RECOVERY = "gi"
"""The scenarios that need connection state recovery, which the Pub/Sub adapter does not have."""


class SocketIO(Peer):
    name = "socketio"
    title = "Socket.IO"
    wire = wires.SocketIO()
    scenarios = "abcdefghij"

    def programs(self, scenario: str, ports: Sequence[int], redis: Path) -> list[Program]:
        env = {
            "NODE_ENV": "production",
            "BENCH_REDIS": str(redis),
            "BENCH_KEY": KEY,
            "BENCH_ADAPTER": "streams" if scenario in RECOVERY else "pubsub",
        }
        return [
            Program(
                numbered("node", index),
                ("node", str(PROGRAMS / "socketio.js")),
                {**env, "BENCH_PORT": str(port)},
                ready="ready\n",
            )
            for index, port in enumerate(ports)
        ]

    def command(self, scenario: str, event: str, data: Mapping[str, Any]) -> Command:
        room = f"thread:{data['thread_id']}"
        packet = {"type": 2, "data": [event, dict(data)], "nsp": "/"}
        options: dict[str, Any] = {"rooms": [room], "flags": {}, "except": []}
        if scenario in RECOVERY:
            # An entry as @socket.io/redis-streams-adapter writes it (type 3: broadcast).
            entry = json.dumps({"packet": packet, "opts": options}, separators=(",", ":"))
            fields = ("uid", "backbone", "nsp", "/", "type", "3", "data", entry)
            return "XADD", "socket.io", "MAXLEN", "~", "10000", "*", *fields
        # As @socket.io/redis-emitter publishes it.
        return "PUBLISH", f"socket.io#/#{room}#", msgpack.packb(["emitter", packet, options])

    def missing(self) -> str | None:
        if (PROGRAMS / "node_modules" / "socket.io").is_dir():
            return None
        return "its Node packages (make bench installs them)"
