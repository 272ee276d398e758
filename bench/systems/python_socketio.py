"""python-socketio with its Redis manager, on uvicorn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import wires
from bench.peers import uvicorn_arguments
from bench.publishing import Command
from bench.systems.base import KEY, PROGRAMS, Peer, Program, numbered

PYTHON = PROGRAMS / ".venv" / "bin" / "python"


class PythonSocketIO(Peer):
    name = "python-socketio"
    title = "python-socketio"
    wire = wires.SocketIO()
    slow = True

    def programs(self, scenario: str, ports: Sequence[int], redis: Path) -> list[Program]:
        env = {"BENCH_REDIS": str(redis), "BENCH_KEY": KEY}
        application = "bench.peers.python_socketio:application"
        return [
            Program(
                numbered("uvicorn", index),
                (str(PYTHON), *uvicorn_arguments(application, port)),
                env,
                port=port,
            )
            for index, port in enumerate(ports)
        ]

    def command(self, scenario: str, event: str, data: Mapping[str, Any]) -> Command:
        # As AsyncRedisManager(write_only=True).emit() publishes it.
        message = {
            "method": "emit",
            "event": event,
            "data": [data],
            "binary": False,
            "namespace": "/",
            "room": f"thread:{data['thread_id']}",
            "skip_sid": None,
            "callback": None,
            "host_id": "backbone",
        }
        return "PUBLISH", "socketio", json.dumps(message, separators=(",", ":"))

    def missing(self) -> str | None:
        return None if PYTHON.exists() else "its own environment (make bench installs it)"
