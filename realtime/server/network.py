"""The two ends of a connection, as ASGI names them."""

from __future__ import annotations

import asyncio
from typing import Any


def peer_address(transport: asyncio.BaseTransport) -> tuple[str, int] | None:
    """Host and port of the client; None for a unix socket."""
    return _host_and_port(transport.get_extra_info("peername"))


def local_address(transport: asyncio.BaseTransport) -> tuple[str, int | None] | None:
    """Host and port of the server; the path of a unix socket has no port."""
    name = transport.get_extra_info("sockname")
    return (name, None) if isinstance(name, str) else _host_and_port(name)


def _host_and_port(name: Any) -> tuple[str, int] | None:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple | list) and len(name) >= 2 else None
