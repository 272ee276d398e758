"""What `make run` prints once everything runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from realtime.redis.url import parse

PROJECT = Path(__file__).resolve().parent.parent
TOKEN_SECONDS = 86400
EXAMPLE = ("thread:message", {"thread_id": "42", "message_id": "1", "body": "hi"})


def banner(sockets: tuple[str, int], web: tuple[str, int], environment: Mapping[str, str], token: str) -> str:
    """The addresses, a token, and how to send a first message."""
    event, data = EXAMPLE
    url = environment["REDIS_URL"]
    page = f"http://{_reachable(web)}"
    channel = f"{environment.get('REALTIME_PREFIX') or 'realtime'}:events"
    python = (
        os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(PROJECT) else sys.executable
    )
    publish = ["env", "DEBUG=1", python, "manage.py", "publish", event, json.dumps(data)]
    cli = ["redis-cli", *_connection(url), "PUBLISH", channel, json.dumps({"event": event, "data": data})]
    return f"""
  Everything runs. Ctrl-C stops it.

  Demo     {page}/        ana / demo (attendant), carla / demo (customer)
  Admin    {page}/admin/  admin / demo
  Hub      ws://{_reachable(sockets)}/hub/
  Portal   ws://{_reachable(sockets)}/portal/
  Redis    {url}

  A token for the hub, as attendant Ana, good for {TOKEN_SECONDS // 3600} hours:
  {token}

  Send a message to all clients in thread 42, from another terminal in this folder:
  {shlex.join(publish)}
  or, from any language, as this command does:
  {shlex.join(cli)}
"""


def _reachable(address: tuple[str, int]) -> str:
    """The address for a browser on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])  # noqa: S104
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def _connection(url: str) -> list[str]:
    if (location := parse(url)).sentinels:
        host, port = location.sync_primary()
        return ["-h", host, "-p", str(port)]
    if location.nodes:
        host, port = location.nodes[0]
        return ["-c", "-h", host, "-p", str(port)]
    parts = urlsplit(url)
    return ["-s", unquote(parts.path)] if parts.scheme == "unix" else ["-u", url]
