"""The live view refreshes itself: in a real browser beside real processes."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus

import pytest
from playwright.async_api import Browser, Route, expect

from tests.e2e.admin import QUICKLY, System, signed_in
from tests.e2e.browser import Tab, Window, require_chromium
from tests.e2e.harness import unique

pytestmark = [pytest.mark.needs_browser, pytest.mark.usefixtures("clean")]

FETCHED = "performance.getEntriesByType('resource').filter(each => each.initiatorType == 'fetch').length"


async def test_who_connects_appears_and_the_focus_and_the_filter_stay(
    system: System,
    browser: Browser,
):
    async with signed_in(browser, system) as page, contextlib.AsyncExitStack() as clients:
        first = unique("u")
        await clients.enter_async_context(system.client("hub", user_id=first, name="Ana"))
        await page.goto(f"{system.admin.url}/admin/presence/live/")
        as_of = page.locator(".presence-as-of dd")
        before = await as_of.inner_text()
        await page.fill("#id_q", "half typed")
        await page.get_by_role("link", name="Ana").focus()
        await clients.enter_async_context(system.client("hub", user_id=unique("u"), name="Bia"))
        await page.get_by_role("link", name="Bia").wait_for()
        await expect(as_of).not_to_have_text(before)
        assert await page.input_value("#id_q") == "half typed"
        assert await page.evaluate("document.activeElement.textContent") == "Ana"
        await expect(page.locator(".presence-totals")).to_contain_text("Connections2")


async def test_operator_pauses_it_and_goes_on(system: System, browser: Browser):
    async with signed_in(browser, system) as page, contextlib.AsyncExitStack() as clients:
        await page.goto(f"{system.admin.url}/admin/presence/live/")
        other = await page.context.new_page()
        await other.goto(f"{system.admin.url}/admin/presence/live/")
        await page.get_by_role("button", name="Pause").click()
        await clients.enter_async_context(system.client("hub", name="Carla"))
        await other.get_by_role("link", name="Carla").wait_for()
        await other.reload()
        await other.wait_for_function(f"{FETCHED} > 1")
        assert await page.get_by_role("link", name="Carla").count() == 0
        await page.get_by_role("button", name="Pause").click()
        await page.get_by_role("link", name="Carla").wait_for()


async def test_nothing_is_asked_while_the_page_is_hidden(system: System):
    require_chromium()
    url = f"{system.admin.url}/admin/presence/live/"
    async with Window.open() as window, window.tab("about:blank") as hidden:
        await _open(hidden, url)
        await _sign_in(hidden)
        await hidden.wait_for(f"{FETCHED} > 0")
        async with window.tab("about:blank") as shown:
            await _open(shown, url)
            await hidden.wait_for("document.hidden")
            await shown.wait_for(f"{FETCHED} > 1")  # what the other one had asked before has been answered
            asked = await hidden.evaluate(FETCHED)
            await shown.wait_for(f"{FETCHED} > 4")
            assert await hidden.evaluate(FETCHED) == asked
            await window.show(hidden)
            await hidden.wait_for(f"{FETCHED} > {asked}")


async def _open(tab: Tab, url: str) -> None:
    await tab.call("Page.enable")
    await tab.call("Page.addScriptToEvaluateOnNewDocument", source=QUICKLY.replace("HURRY", "10"))
    await tab.call("Page.navigate", url=url)


async def _sign_in(tab: Tab) -> None:
    await tab.wait_for("document.readyState == 'complete' && document.querySelector('#id_username') !== null")
    await tab.evaluate(
        "id_username.value = 'admin', id_password.value = 'a long one', document.querySelector('[type=submit]').click()"
    )
    await tab.wait_for("document.readyState == 'complete' && document.querySelector('#refreshed') !== null")


async def test_web_side_that_does_not_answer_is_told_and_the_page_recovers(
    system: System,
    browser: Browser,
):
    async with signed_in(browser, system) as page:
        await page.goto(f"{system.admin.url}/admin/presence/live/instances/")
        told = page.get_by_text("The page cannot be refreshed")
        await expect(told).to_be_hidden()
        system.web.stop()
        await told.wait_for()
        await expect(page.locator("#refreshed")).to_have_class("presence-old")
        system.web = system.start("runweb")
        await expect(told).to_be_hidden()
        await expect(page.locator("#refreshed")).to_have_class("")


async def test_web_side_that_is_slow_or_away_is_asked_less_often(system: System, browser: Browser):
    answers = {"seconds": 0.0, "status": 200}

    async def answer(route: Route) -> None:
        await asyncio.sleep(answers["seconds"])
        if answers["status"] == HTTPStatus.OK:
            await route.continue_()
        else:
            await route.fulfill(status=404, body="<p>of a proxy</p>", content_type="text/html")

    async with signed_in(browser, system, hurry=50) as page:
        await page.goto(f"{system.admin.url}/admin/presence/live/instances/")
        assert await page.evaluate("waits[0]") == 5000
        await page.route("**/instances/", answer)
        answers["seconds"] = 1.5
        await page.wait_for_function("waits.at(-1) >= 6000")
        answers["seconds"] = 0
        await page.wait_for_function("waits.at(-1) < 6000")
        answers["status"] = 404
        await page.get_by_text("The page cannot be refreshed").wait_for()
        await page.wait_for_function("waits.filter(each => each >= 45000).length > 2")
        waits = await page.evaluate("waits")
        assert max(waits) <= 60_000
        answers["status"] = 200
        await page.wait_for_function("waits.at(-1) < 6000")
        await expect(page.get_by_text("The page cannot be refreshed")).to_be_hidden()


async def test_session_that_has_ended_leads_to_the_login_page(system: System, browser: Browser):
    async with signed_in(browser, system) as page:
        await page.goto(f"{system.admin.url}/admin/presence/live/")
        await page.context.clear_cookies()
        await page.wait_for_url("**/admin/login/**")


async def test_connection_that_ends_is_told_on_its_page(system: System, browser: Browser):
    async with signed_in(browser, system) as page, contextlib.AsyncExitStack() as clients:
        await clients.enter_async_context(system.client("hub", name="Ana"))
        await page.goto(f"{system.admin.url}/admin/presence/live/")
        await page.get_by_role("link", name="Ana").click()
        await page.get_by_text("up to date").first.wait_for()
        await clients.aclose()
        await page.get_by_text("This connection has ended.").wait_for()
