"""One process of the server that a test session starts: `python -m realtime.testing.process`, told by its parent."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from realtime.testing.embedded_redis import die_with

HOST = "127.0.0.1"


def main() -> None:
    """Run as the order on standard input says, until SIGTERM or the end of the parent."""
    order = json.load(sys.stdin)
    die_with(order["parent"])
    _set_up(order["module"], order["settings"])
    {"sockets": _sockets, "bridge": _bridge}[order["role"]]()


def _set_up(module: str, overrides: dict[str, Any]) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = module

    import django  # noqa: PLC0415
    from django.conf import settings  # noqa: PLC0415
    from django.core.management import CommandError, call_command  # noqa: PLC0415

    for name, value in merged(settings, overrides).items():
        setattr(settings, name, value)
    django.setup()
    try:
        call_command("check")
    except CommandError as error:
        sys.exit(str(error))


def merged(settings: Any, overrides: dict[str, Any]) -> dict[str, Any]:
    """Settings that replace others; of `REALTIME` only the entries that are given."""
    changed = {**overrides, "REALTIME": {**getattr(settings, "REALTIME", {}), **overrides["REALTIME"]}}
    if not getattr(settings, "CHANNEL_LAYERS", {}):
        changed["CHANNEL_LAYERS"] = {"default": {"BACKEND": "realtime.layers.RoomChannelLayer"}}
    return changed


def _sockets() -> None:
    from realtime.server.uvicorn_server import Server, bind, configuration  # noqa: PLC0415

    socket = bind(HOST, 0)
    port = socket.getsockname()[1]
    _say(f"port {port}")
    Server(configuration(HOST, port)).run(sockets=[socket])


def _bridge() -> None:
    import uvloop  # noqa: PLC0415

    from realtime.inline.delivery import deliver  # noqa: PLC0415

    uvloop.run(deliver(lambda: _say("ready")))


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
