"""A product that declares namespaces and kinds of rooms (tests/ops), and its clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.e2e.harness import Client, Stack

NAMESPACES = ",".join(
    [
        "realtime.namespaces.hub.HUB",
        "realtime.namespaces.portal.PORTAL",
        "tests.ops.namespace.OPS",
        "tests.ops.namespace.LAB",
    ]
)
ROLES = {"ops": "supervisor", "lab": "researcher"}


@asynccontextmanager
async def client(product: Stack, namespace: str = "ops", *rooms: str, **more: str) -> AsyncIterator[Client]:
    """A client of one of the two, in these rooms."""
    async with product.client(namespace, more.pop("user_id", None), ROLES[namespace], **more) as connected:
        for room in rooms:
            await connected.call("join", {"room": room})
        yield connected


def change(product: Stack, board: str, number: int = 0) -> None:
    product.add("board:changed", {"board_id": board, "number": number})


def numbers(client: Client) -> list[int]:
    return [frame["data"]["number"] for frame in client.frames if frame["event"] == "board:changed"]
