"""A Go server on the centrifuge library, with its Redis broker; built by `make bench` where there is a Go."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import wires
from bench.publishing import Command
from bench.systems.base import KEY, PROGRAMS, Peer, Program, numbered

SERVER = PROGRAMS / "centrifuge" / "server"


class Centrifuge(Peer):
    name = "centrifuge"
    title = "Centrifuge"
    wire = wires.Centrifuge()
    guarantee = "at most once live, at least once from the bus, recoverable"
    scenarios = "abcdefghij"

    def programs(self, scenario: str, ports: Sequence[int], redis: Path) -> list[Program]:
        # One core, as every system: more threads than cores would only cost it.
        env = {"BENCH_REDIS": str(redis), "BENCH_KEY": KEY, "GOMAXPROCS": "1"}
        return [
            Program(
                numbered("server", index),
                (str(SERVER),),
                {**env, "BENCH_PORT": str(port)},
                ready="ready\n",
            )
            for index, port in enumerate(ports)
        ]

    def command(self, scenario: str, event: str, data: Mapping[str, Any]) -> Command:
        message = {"event": event, "data": data}
        return "XADD", "bench:stream", "*", "message", json.dumps(message, separators=(",", ":"))

    def missing(self) -> str | None:
        return None if SERVER.exists() else "Go 1.26 or newer (make bench builds it)"
