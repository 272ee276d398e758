"""The lines of docs/clients.md, run as they stand there."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import indent

import pytest

from tests.blocks import only
from tests.e2e.harness import ROOT, Stack, eventually, unique

PAGE = "clients.md"
HUB = "wss://example.com/hub/"
Output = Callable[[], str]


@contextlib.contextmanager
def running(stack: Stack, directory: Path, command: list[str], typed: str = "") -> Iterator[Output]:
    """A command while it runs, and what it has written so far."""
    log = directory / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=stack.env, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        )
    assert process.stdin is not None
    try:
        process.stdin.write(typed.encode())
        process.stdin.flush()
        yield lambda: log.read_text(errors="replace")
    finally:
        process.kill()
        process.communicate()


async def hears_what_is_published(stack: Stack, thread: str, output: Output) -> None:
    body = unique("hello")

    def is_heard() -> bool:
        stack.add("thread:message", {"thread_id": thread, "message_id": "1", "body": body})
        return body in output()

    try:
        await eventually(is_heard)
    except AssertionError:
        raise AssertionError(output()) from None


def python(lines: str, url: str, token: str) -> list[str]:
    """A command that runs lines which stand in a coroutine."""
    script = f"""
import asyncio
import websockets

async def main(url, token, get_token):
{indent(lines, "    ")}
asyncio.run(main({url!r}, {token!r}, lambda: {token!r}))
"""
    return [sys.executable, "-c", script]


@pytest.mark.parametrize("word", ["realtime.client", "websockets.connect"])
async def test_python_of_the_page_hears_what_is_published(uvicorn_stack: Stack, tmp_path: Path, word: str):
    thread, url = unique("th"), uvicorn_stack.url("hub")
    lines = only(PAGE, "python", word).replace('"42"', f'"{thread}"').replace(HUB, url)
    with running(uvicorn_stack, tmp_path, python(lines, url, uvicorn_stack.token())) as output:
        await hears_what_is_published(uvicorn_stack, thread, output)


@pytest.mark.needs_tools
@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node")
async def test_javascript_of_the_page_hears_what_is_published(uvicorn_stack: Stack, tmp_path: Path):
    thread = unique("th")
    lines = (
        only(PAGE, "js", "new WebSocket")
        .replace('"42"', f'"{thread}"')
        .replace(HUB, uvicorn_stack.url("hub"))
    )
    script = f"const token = {uvicorn_stack.token()!r};\n{lines}"
    node = ["node", "--experimental-websocket", "--eval", script]  # without a flag from Node 22 on
    with running(uvicorn_stack, tmp_path, node) as output:
        await hears_what_is_published(uvicorn_stack, thread, output)


def terminal(stack: Stack, thread: str) -> tuple[str, str]:
    """What is called, and what is typed then."""
    command, typed = only(PAGE, "console", "websocat").replace('"42"', f'"{thread}"').splitlines()
    return command.replace("$TOKEN", stack.token()).replace(
        "ws://127.0.0.1:8001/hub/", stack.url("hub")
    ), typed


if shutil.which("websocat"):  # Debian has none

    async def test_terminal_of_the_page_hears_what_is_published(uvicorn_stack: Stack, tmp_path: Path):
        thread = unique("th")
        command, typed = terminal(uvicorn_stack, thread)
        with running(uvicorn_stack, tmp_path, shlex.split(command), f"{typed}\n") as output:
            await hears_what_is_published(uvicorn_stack, thread, output)


async def test_frame_that_is_typed_into_a_terminal_is_acknowledged(uvicorn_stack: Stack):
    thread = unique("th")
    async with uvicorn_stack.client("hub") as client:
        await client.raw(terminal(uvicorn_stack, thread)[1])
        assert (await client.expect("ack", room=f"thread:{thread}"))["id"] == 1
