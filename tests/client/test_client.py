"""A client from entering its block to leaving it."""

from __future__ import annotations

import asyncio
import doctest
import inspect
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
import websockets

import realtime.client
from realtime.client import Client, retries
from tests.client.scripted import (
    ROOM,
    Flood,
    Reader,
    Refusal,
    ScriptedServer,
    Visit,
    reading,
    resumes,
    token,
)
from tests.e2e.harness import PATIENCE, eventually


def talk(visit: Visit) -> Flood:
    """The server sends more than fits into a slow reader and the network."""
    return Flood(
        lambda number: visit.say(
            "thread:message",
            {"message_id": str(number), "body": "x" * 50_000},
            room=ROOM,
            offset=str(1000 + number),
        )
    )


async def test_slow_reader_holds_up_the_server_and_misses_nothing(server: ScriptedServer):
    async with Client(server.url, token, max_unread=10) as client:
        client.join("42")
        await client.connected()
        talking = talk(await server.visit(1))
        await eventually(talking.is_stuck)
        reader = Reader(client)
        await talking.task
        await reader.heard("thread:message", Flood.size)
        seen = [event.data["message_id"] for event in reader.named("thread:message")]
        assert seen == [str(number) for number in range(Flood.size)]


async def test_slow_reader_whose_connection_is_lost_goes_on_from_the_last_event_that_came(
    server: ScriptedServer,
):
    async with Client(server.url, token, max_unread=10, reconnection_delay=0.01) as client:
        client.join("42")
        await client.connected()
        visit = await server.visit(1)
        talking = talk(visit)
        await eventually(talking.is_stuck)
        visit.drop()
        await asyncio.gather(talking.task, return_exceptions=True)
        assert server.handshakes == 1
        reader = Reader(client)
        since = (await resumes(await server.visit(2)))[ROOM]
        messages = reader.named("thread:message")
        assert [event.offset for event in messages] == [str(1000 + n) for n in range(len(messages))]
        assert since == messages[-1].offset


def tasks_of_clients() -> list[str]:
    return [name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("client")]


async def test_leaving_closes_the_connection_normally(server: ScriptedServer):
    async with reading(server) as reader:
        await reader.client.connected()
    visit = await server.visit(1)
    await visit.websocket.wait_closed()
    assert visit.websocket.close_code == 1000


@pytest.mark.parametrize("moment", ["connected", "waiting", "shaking hands", "getting a token", "unread"])
async def test_leaving_leaves_no_task(server: ScriptedServer, moment: str):
    asked = asyncio.Event()

    async def get_token() -> str:
        asked.set()
        if moment == "getting a token":
            await asyncio.Event().wait()
        return token()

    if moment == "waiting":
        server.script.append(Refusal(503, {"Retry-After": "3600"}))
    elif moment == "shaking hands":
        server.script.append("hang")
    async with Client(server.url, get_token, max_unread=10) as client:
        await asked.wait()
        match moment:
            case "connected":
                await client.connected()
            case "waiting":
                await anext(aiter(client))
            case "shaking hands":
                await server.visit(1)
            case "unread":
                visit = await server.visit(1)
                for number in range(20):
                    await visit.message(str(number))
        assert tasks_of_clients()
    assert tasks_of_clients() == []


async def test_cancelling_leaves_no_task_and_no_connection(server: ScriptedServer):
    async def use() -> None:
        async with Client(server.url, token) as client:
            async for _ in client:
                pass

    using = asyncio.create_task(use())
    visit = await server.visit(1)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert tasks_of_clients() == []
    await visit.websocket.wait_closed()


@pytest.mark.parametrize("steps", range(8))
async def test_cancelling_while_it_is_left_leaves_no_task(server: ScriptedServer, steps: int):
    leaving = asyncio.Event()

    async def use() -> None:
        async with Client(server.url, token) as client:
            await client.connected()
            leaving.set()

    using = asyncio.create_task(use())
    await leaving.wait()
    for _ in range(steps):
        await asyncio.sleep(0)
    using.cancel()
    await asyncio.wait([using])
    assert tasks_of_clients() == []


# --- On its own --------------------------------------------------------------------------------------


async def test_example_in_its_docstring_prints_what_arrives(server: ScriptedServer, capsys):
    indented = inspect.cleandoc(Client.__doc__ or "").partition("::\n\n")[2].partition("\n\n")[0]
    example = dedent(indented).replace("wss://example.com/hub/", server.url)
    scope: dict[str, Any] = {"Client": Client}
    exec(f"async def program(get_token):\n{indent(example, '    ')}", scope)
    running = asyncio.create_task(scope["program"](token))
    visit = await server.visit(1)
    await eventually(lambda: visit.events("join:thread"))
    await visit.message("201")
    await visit.say("queue:emptied", {})
    await eventually(lambda: "thread:message {'message_id': '201'}" in capsys.readouterr().out)
    await visit.fail(1000)
    await asyncio.wait_for(running, PATIENCE)


def test_example_of_backoff_is_true():
    assert doctest.testmod(retries) == (0, 1)


def test_folder_may_be_copied_under_any_name_and_needs_websockets_only(tmp_path: Path):
    shutil.copytree(Path(realtime.client.__file__).parent, tmp_path / "support_chat")
    (tmp_path / "websockets").symlink_to(Path(websockets.__file__).parent)
    program = f"import sys; sys.path += [{str(tmp_path)!r}]; import support_chat; assert 'realtime' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)
