"""The admin's pages in a real browser: nothing sticks out at any width, nothing fails, in both colour schemes."""

from __future__ import annotations

import contextlib

import pytest
from playwright.async_api import async_playwright

from tests.e2e.browser import ARGUMENTS, CHROMIUM, require_chromium
from tests.e2e.harness import unique
from tests.e2e.test_live_view import System, system  # noqa: F401  (a fixture)

pytestmark = pytest.mark.needs_browser

PAGES = [
    *("presence/live/", "presence/live/instances/", "presence/live/rooms/", "presence/live/event/"),
    *("presence/live/log/", "presence/deadletter/", "presence/availability/", "presence/presencerecord/"),
    "presence/presencetransition/",
]


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (800, "dark"), (1280, "light")])
async def test_pages_fit_and_work(system: System, width: int, scheme: str):  # noqa: F811
    require_chromium()
    system.start("runrecorder")
    for letter in ("no json", '{"event":"nope:nope","data":{"' + "y" * 3000 + '":1}}', "\x00\x1b"):
        system.redis.xadd(system.key("stream"), {"message": letter})
    async with contextlib.AsyncExitStack() as all_clients, async_playwright() as playwright:
        for number in range(12):
            client = await all_clients.enter_async_context(system.client("hub", name=f"Attendant {number}"))
            await client.call("join:thread", {"thread_id": unique("a-thread-with-a-long-name")})
        browser = await playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        context = await browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
            locale="pt-BR",
        )
        page = await context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(f"{system.admin.url}/admin/")
        await page.fill("#id_username", "admin")
        await page.fill("#id_password", "a long one")
        await page.click("[type=submit]")
        for path in PAGES:
            answer = await page.goto(f"{system.admin.url}/admin/{path}")
            assert answer is not None
            assert answer.status == 200, path
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
        await page.goto(f"{system.admin.url}/admin/presence/live/")
        await page.get_by_role("link", name="Attendant 3").click()
        await page.get_by_role("link", name="Desconectar usuário").click()
        await page.get_by_role("button", name="Desconectar").click()
        await page.get_by_text("O usuário está sendo desconectado.").wait_for()
        assert errors == []
        await browser.close()
