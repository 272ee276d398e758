"""The cases that hold every client to the same rules: client/conformance."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Any

import pytest
from websockets.asyncio.server import serve

from realtime.client import Client
from tests.client.conformance import FOLDER, Player, cases

CASES = dict(cases())
ACCEPT: dict[str, Any] = {"accept": {}}


@pytest.mark.parametrize("name", CASES)
async def test_case(name: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    player = await play(CASES[name])
    said = "\n".join([*player.seen, caplog.text])
    assert not [secret for secret in player.secrets() if secret in said]


async def play(case: dict[str, Any]) -> Player:
    """Play a case against a server of its own."""
    player = Player(case)
    silent = logging.getLogger("conformance.server")  # which would log what it is sent
    silent.setLevel(logging.CRITICAL)
    async with serve(
        player.serve,
        "127.0.0.1",
        0,
        process_request=player.look,
        select_subprotocol=player.subprotocol,
        logger=silent,
        max_size=None,
        close_timeout=1,
    ) as server:
        port = server.sockets[0].getsockname()[1]
        options: dict[str, Any] = {"url": f"ws://127.0.0.1:{port}/hub/", "reconnection_delay": 0.01}
        options |= case.get("options", {})
        options["reconnection_delay_max"] = max(0.02, _number(options["reconnection_delay"]))
        if case.get("invalid"):
            with pytest.raises((TypeError, ValueError)):
                Client(get_token=player.get_token, **options)
        else:
            await _use(player, options)
    return player


async def _use(player: Player, options: dict[str, Any]) -> None:
    async with Client(get_token=player.get_token, **options) as client:
        player.client = client
        reading = asyncio.create_task(player.read(client))
        try:
            await player.play()
        finally:
            player.seen.append(repr(client))
            player.forget_handshakes()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0.0


def test_every_step_is_specified():
    """A third client is written against the README alone."""
    text = (FOLDER / "README.md").read_text()
    steps = [step for case in CASES.values() for step in case["steps"]]
    words = {name for step in steps for name in step} | {step["told"] for step in steps if "told" in step}
    words |= {name for case in CASES.values() for name in case}
    words |= {word for case in CASES.values() for word in re.findall(r"\$\w+", json.dumps(case))}
    assert [word for word in sorted(words) if word not in text] == []


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([{"accept": {"token": "b"}}], "step 0"),
        ([{"accept": {"resume": True}}], "step 0"),
        (
            [
                ACCEPT,
                {"do": "send", "event": "x:y"},
                {"do": "send", "event": "x:z"},
                {"expect": {"event": "x:z"}},
            ],
            "took",
        ),
        ([ACCEPT, {"do": "join", "room": "1", "fails": True}], "did not fail"),
        ([ACCEPT, {"cut": {}}, {"no_handshake": 0.3}], "another attempt"),
    ],
)
async def test_runner_fails_a_case_that_does_not_hold(steps: list[dict[str, Any]], problem: str):
    with pytest.raises(AssertionError, match=problem):
        await play({"steps": steps})
