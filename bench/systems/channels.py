"""Django Channels as in its documentation, on the Pub/Sub layer of channels_redis."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from bench import wires
from bench.peers import uvicorn_arguments
from bench.publishing import Command
from bench.systems.base import KEY, Peer, Program, numbered

APPLICATION = "bench.peers.channels:application"


class _Channels(Peer):
    wire = wires.PlainChannels()
    slow = True

    @abstractmethod
    def _arguments(self, port: int) -> tuple[str, ...]: ...

    def programs(self, scenario: str, ports: Sequence[int], redis: Path) -> list[Program]:
        env = {"BENCH_REDIS": str(redis), "BENCH_KEY": KEY}
        return [
            Program(numbered("server", index), (sys.executable, *self._arguments(port)), env, port=port)
            for index, port in enumerate(ports)
        ]

    def command(self, scenario: str, event: str, data: Mapping[str, Any]) -> Command:
        # As RedisPubSubChannelLayer.group_send() publishes it.
        message = {"type": "to.client", "frame": {"event": event, "data": dict(data)}, "sender": ""}
        return "PUBLISH", f"asgi__group__thread.{data['thread_id']}", msgpack.packb(message)


class ChannelsOnUvicorn(_Channels):
    name = "channels-uvicorn"
    title = "Channels, uvicorn"

    def _arguments(self, port: int) -> tuple[str, ...]:
        return uvicorn_arguments(APPLICATION, port)


class ChannelsOnDaphne(_Channels):
    name = "channels-daphne"
    title = "Channels, daphne"

    def _arguments(self, port: int) -> tuple[str, ...]:
        return ("-m", "daphne", "-v", "0", "--bind", "127.0.0.1", "--port", str(port), APPLICATION)
