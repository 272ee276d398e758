"""A page with the TypeScript client on it, in a real browser, beside real processes."""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page

from tests.e2e.browser import require_chromium
from tests.e2e.harness import ROOT, Process, Stack, free_port, unique

CLIENT = ROOT / "client"


class Site(Stack):
    """Socket server, bridge, and a page."""

    sockets: Process

    def __init__(self, directory: Path, redis_url: str) -> None:
        self.site_port = free_port()
        super().__init__(directory, redis_url, ALLOWED_ORIGINS=self.address)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.site_port}"

    def start_all(self) -> Site:
        self.start("runbridge")
        self.sockets = self.start_sockets()
        return self

    def options(self, *tokens: str) -> dict[str, Any]:
        """What the page is started with: one attendant, who is back soon."""
        return {
            "url": self.url("hub"),
            "tokens": tokens or (self.token(unique("u")),),
            "reconnectionDelay": 100,
            "reconnectionDelayMax": 500,
            "gapDelayMax": 100,
        }


@contextlib.contextmanager
def serving(redis_url: str, factory: pytest.TempPathFactory, page: str, entry: str) -> Iterator[Site]:
    """A site whose page is `page`, with `client.js` bundled from `entry`, which is relative to the client's folder."""
    require_chromium()
    if shutil.which("npm") is None or not (CLIENT / "node_modules").exists():
        pytest.fail("the client is not installed: make test-client")
    folder = factory.mktemp("site")
    (folder / "index.html").write_text(page)
    subprocess.run(
        ["node", "test/pages/build.mjs", entry, folder / "client.js"],
        cwd=CLIENT,
        check=True,
        capture_output=True,
    )
    handler = functools.partial(_Quiet, directory=str(folder))
    with (
        Site(factory.mktemp("client"), redis_url) as site,
        http.server.ThreadingHTTPServer(("127.0.0.1", site.site_port), handler) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield site.start_all()
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


async def opened(browser: Browser, site: Site) -> Page:
    """The page, before anything is started on it."""
    page = await browser.new_page()
    await page.goto(site.address)
    await page.wait_for_function("window.loaded")
    return page
