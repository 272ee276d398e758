"""What an operator does in the admin, in a real browser beside real processes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.e2e.browser import Tab, Window, require_chromium
from tests.e2e.harness import unique
from tests.e2e.test_live_view import System, system  # noqa: F401  (a fixture)

pytestmark = pytest.mark.needs_browser

FETCHED = "performance.getEntriesByType('resource').filter(each => each.initiatorType == 'fetch').length"


@contextlib.asynccontextmanager
async def signed_in(browser: Browser, system: System) -> AsyncIterator[Page]:  # noqa: F811
    """A page of an operator; nothing on it fails, and nothing breaks the policy that it is served with."""
    context = await browser.new_context(locale="en-US")
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(f"{system.admin.url}/admin/")
    await page.fill("#id_username", "admin")
    await page.fill("#id_password", "a long one")
    await page.click("[type=submit]")
    yield page
    assert errors == []
    await context.close()


# --- The live view refreshes itself ------------------------------------------------------------------


async def test_who_connects_appears_and_the_focus_and_the_filter_stay(
    system: System,  # noqa: F811
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
        assert await as_of.inner_text() != before
        assert await page.input_value("#id_q") == "half typed"
        assert await page.evaluate("document.activeElement.textContent") == "Ana"
        await expect(page.locator(".presence-totals")).to_contain_text("Connections2")


async def test_operator_pauses_it_and_goes_on(system: System, browser: Browser):  # noqa: F811
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


async def test_nothing_is_asked_while_the_page_is_hidden(system: System):  # noqa: F811
    require_chromium()
    url = f"{system.admin.url}/admin/presence/live/"
    async with Window.open() as window, window.tab(url) as hidden:
        await _sign_in(hidden)
        await hidden.wait_for(f"{FETCHED} > 0")
        async with window.tab(url) as shown:
            await hidden.wait_for("document.hidden")
            await shown.wait_for(f"{FETCHED} > 0")  # what the other one had asked before has been answered
            asked = await hidden.evaluate(FETCHED)
            await shown.wait_for(f"{FETCHED} > 2")
            assert await hidden.evaluate(FETCHED) == asked
            await window.show(hidden)
            await hidden.wait_for(f"{FETCHED} > {asked}")


async def _sign_in(tab: Tab) -> None:
    await tab.wait_for("document.readyState == 'complete' && document.querySelector('#id_username') !== null")
    await tab.evaluate(
        "id_username.value = 'admin', id_password.value = 'a long one', document.querySelector('[type=submit]').click()"
    )
    await tab.wait_for("document.readyState == 'complete' && document.querySelector('#refreshed') !== null")


async def test_web_side_that_does_not_answer_is_told_and_the_page_recovers(
    system: System,  # noqa: F811
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


async def test_session_that_has_ended_leads_to_the_login_page(system: System, browser: Browser):  # noqa: F811
    async with signed_in(browser, system) as page:
        await page.goto(f"{system.admin.url}/admin/presence/live/")
        await page.context.clear_cookies()
        await page.wait_for_url("**/admin/login/**")


async def test_connection_that_ends_is_told_on_its_page(system: System, browser: Browser):  # noqa: F811
    async with signed_in(browser, system) as page, contextlib.AsyncExitStack() as clients:
        await clients.enter_async_context(system.client("hub", name="Ana"))
        await page.goto(f"{system.admin.url}/admin/presence/live/")
        await page.get_by_role("link", name="Ana").click()
        await page.get_by_text("up to date").first.wait_for()
        await clients.aclose()
        await page.get_by_text("This connection has ended.").wait_for()
