"""A real browser for the tests that need one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from subprocess import DEVNULL
from tempfile import TemporaryDirectory
from typing import Any, Self

import pytest
from playwright.async_api import Browser, async_playwright, expect
from websockets.asyncio.client import ClientConnection, connect

from tests.e2e.harness import PATIENCE, ROOT, eventually, free_port

expect.set_options(timeout=PATIENCE * 1000)
CHROMIUM = Path("/usr/bin/chromium")
BETWEEN_PAGES = re.compile(
    "Cannot find default execution context|Execution context was destroyed|Inspected target navigated"
)
"""What Chromium answers before the page is there, and when another one comes while it is asked."""
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def require_chromium() -> None:
    """Skip where there is none; under CI that is a failure."""
    if not CHROMIUM.exists():
        missing = f"{CHROMIUM} is missing: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)


def require_desk() -> None:
    """Skip where the demo's page was not built; under CI that is a failure."""
    if not (ROOT / "demo/static/demo/desk.js").exists():
        missing = "the demo's page is not built: make desk"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)


@contextlib.asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """A headless Chromium in the hands of Playwright."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


class Window:
    """A window with real tabs: one tab is in front, the rest are hidden.

    Playwright tells every page that it has the focus, so this speaks the debugging protocol itself.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls) -> AsyncIterator[Self]:
        port = free_port()
        with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            chromium = await asyncio.create_subprocess_exec(
                CHROMIUM, *ARGUMENTS, "--headless=new", f"--user-data-dir={profile}",
                f"--remote-debugging-port={port}", "about:blank", stdout=DEVNULL, stderr=DEVNULL,
            )  # fmt: skip
            try:
                window = cls(port)
                await eventually(window._is_open)
                yield window
            finally:
                chromium.terminate()
                await chromium.wait()

    async def _is_open(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(await self._ask("GET", "version"))
        return False

    async def _ask(self, method: str, what: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/json/{what}", method=method)
        answer = await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=PATIENCE).read())
        return json.loads(answer) if answer.startswith((b"{", b"[")) else answer

    @contextlib.asynccontextmanager
    async def tab(self, address: str) -> AsyncIterator[Tab]:
        """A new tab, in front."""
        target = await self._ask("PUT", f"new?{address}")
        async with connect(target["webSocketDebuggerUrl"], max_size=None) as websocket:
            yield Tab(websocket)

    async def show(self, tab: Tab) -> None:
        """Bring it to the front."""
        await tab.call("Page.bringToFront")


class Tab:
    """A tab of a `Window`."""

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket
        self._ids = itertools.count(1)

    async def call(self, method: str, **parameters: Any) -> Any:
        answer = await self._ask(method, **parameters)
        assert "error" not in answer, answer
        return answer["result"]

    async def _ask(self, method: str, **parameters: Any) -> Any:
        call_id = next(self._ids)
        await self._websocket.send(json.dumps({"id": call_id, "method": method, "params": parameters}))
        while (answer := json.loads(await self._websocket.recv())).get("id") != call_id:
            pass
        return answer

    async def evaluate(self, expression: str) -> Any:
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        while BETWEEN_PAGES.search(str((found := await self._ask("Runtime.evaluate", **asked)).get("error"))):
            await asyncio.sleep(0.02)
        assert "error" not in found, found
        answer = found["result"]
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait_for(self, expression: str) -> None:
        async def holds() -> bool:
            return bool(await self.evaluate(expression))

        await eventually(holds)
