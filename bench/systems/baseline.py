"""A reference that copies bytes from Redis to every socket, to find the limits of load generator and machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import wires
from bench.publishing import Command
from bench.systems.base import Peer, Program


class Baseline(Peer):
    name = "baseline"
    title = "bare fan-out"
    wire = wires.Ours()
    guarantee = "none"
    scenarios = "abdef"
    reference = True

    def programs(self, scenario: str, ports: Sequence[int], redis: Path) -> list[Program]:
        env = {"BENCH_REDIS": str(redis), "BENCH_PORT": str(ports[0])}
        return [Program("server", (sys.executable, "-m", "bench.peers.baseline"), env, ready="ready\n")]

    def command(self, scenario: str, event: str, data: Mapping[str, Any]) -> Command:
        return "PUBLISH", "bench", json.dumps({"event": event, "data": data}, separators=(",", ":"))
