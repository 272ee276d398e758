"""The client's example for Next.js, built and started as in production, against real processes."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from signal import SIGKILL

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Request, expect

from tests.e2e.browser import require_chromium
from tests.e2e.harness import CHEAP_LOGINS, PATIENCE, ROOT, Process, Stack, eventually, free_port

pytestmark = pytest.mark.needs_browser

EXAMPLE = ROOT / "client" / "examples" / "nextjs"
THREAD = "42"


class Site(Stack):
    """Socket server, bridge, the web side with its token endpoint, and the example in front of them."""

    sockets: Process
    next: Process

    def __init__(self, directory: Path, redis_url: str) -> None:
        self.site_port = free_port()
        self.web_port = free_port()
        super().__init__(directory, redis_url, ALLOWED_ORIGINS=self.address, WEB_PORT=str(self.web_port))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.site_port}"

    def start_site(self) -> Site:
        for command in (["migrate", "--verbosity", "0"], ["createdemo", "--verbosity", "0"]):
            self.manage(*command, **CHEAP_LOGINS)
        self.start("runbridge")
        self.start("runweb", **CHEAP_LOGINS)
        self.sockets = self.start_sockets()
        env = {
            **os.environ,
            "BACKBONE_URL": f"http://127.0.0.1:{self.web_port}",
            "SOCKETS_URL": self.url("hub"),
            "NEXT_TELEMETRY_DISABLED": "1",
        }
        bind = ["--hostname", "127.0.0.1", "--port", str(self.site_port)]
        command = ["node", str(EXAMPLE / "node_modules/next/dist/bin/next"), "start", str(EXAMPLE), *bind]
        self.next = Process("nextjs", command, env, self.directory / "nextjs.log")
        self.processes.append(self.next)
        self.next.wait_for("Ready in")
        return self

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """The page as a browser without JavaScript gets it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.site_port, timeout=PATIENCE)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def site(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require_chromium()
    if shutil.which("node") is None or not (EXAMPLE / ".next" / "BUILD_ID").exists():
        pytest.fail("the example is not built: make nextjs")
    with Site(tmp_path_factory.mktemp("nextjs"), redis_url) as site:
        yield site.start_site()
    assert "⨯" not in site.next.output, site.next.output


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, site: Site) -> AsyncIterator[Page]:
    """The form, on a page on which nothing fails: no rendering of the server that the browser disagrees with."""
    page = await browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(site.address)
    yield page
    assert errors == []


async def sign_in(page: Page, username: str = "ana", password: str = "demo") -> None:
    await page.get_by_label("Username").fill(username)
    await page.get_by_label("Password").fill(password)
    await page.get_by_role("button", name="Sign in").click()


async def enter(page: Page) -> None:
    """Sign in, and be in the thread."""
    frames: list[str] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(str(frame))))
    await sign_in(page)
    await eventually(lambda: any(f"thread:{THREAD}" in frame for frame in frames))
    await expect(page.get_by_role("status")).to_have_text("connected")


def test_server_renders_the_components_without_a_connection(site: Site):
    code, html = site.get("/", Cookie="session=unknown")
    assert code == 200
    assert '<section aria-label="Thread 42"><p role="status">stopped</p>' in html
    assert '<ul aria-label="Present"></ul>' in html


def test_visitor_without_a_session_gets_no_token(site: Site):
    assert "Sign in" in site.get("/")[1]
    assert site.get("/api/token") == (401, "not signed in")
    assert site.get("/api/token", Cookie="session=made-up") == (401, "not signed in")


async def test_wrong_password_is_said(page: Page):
    await sign_in(page, password="wrong")
    await expect(page.get_by_text("The username or password is wrong.")).to_be_visible()


async def test_whose_session_is_over_signs_in_again(page: Page, site: Site):
    await page.context.add_cookies([{"name": "session", "value": "too-old", "url": site.address}])
    await page.reload()
    await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    assert await page.context.cookies() == []


async def test_who_signs_in_is_connected_and_sees_what_happens(page: Page, site: Site):
    await enter(page)
    await expect(page.get_by_label("Present").get_by_text("Ana Lima (online)")).to_be_visible()
    assert await page.evaluate("document.cookie") == ""

    site.add("thread:message", {"thread_id": THREAD, "message_id": "1", "body": "hi"})
    await expect(page.locator("ol li")).to_have_text(["hi"])

    async with site.client(token=site.token("8", name="Bia")) as bia:
        await bia.call("join:thread", {"thread_id": THREAD})
        await bia.send("typing:start", {"thread_id": THREAD})
        await expect(page.get_by_text("Bia is typing…")).to_be_visible()
        await page.get_by_label("Message").press_sequentially("hello")
        await bia.expect("thread:typing", name="Ana Lima", typing=True)


async def test_who_signs_in_next_comes_with_a_token_of_their_own(page: Page):
    await sign_in(page, "ana")
    await expect(page.get_by_role("status")).to_have_text("connected")
    await page.get_by_role("button", name="Sign out").click()
    await sign_in(page, "bia")
    await expect(page.get_by_text("Bia Souza (online)")).to_be_visible()


async def test_what_server_components_show_is_fetched_anew_after_a_gap(page: Page, site: Site):
    await enter(page)
    site.add("thread:message", {"thread_id": THREAD, "message_id": "2", "body": "seen"})
    await expect(page.get_by_text("seen")).to_be_visible()

    site.sockets.stop(SIGKILL)
    for key in site.redis.scan_iter(f"{site.prefix}*{THREAD}*"):
        site.redis.delete(key)
    async with page.expect_request(is_refresh, timeout=PATIENCE * 1000):
        site.sockets = await asyncio.to_thread(site.start_sockets)


def is_refresh(request: Request) -> bool:
    return "rsc" in request.headers
