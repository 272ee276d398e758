"""What the server refuses or limits, as the React hooks tell it in a real browser."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser

from tests.e2e.harness import unique
from tests.e2e.hooks import Desk, desk, message
from tests.e2e.site import Site, opened

pytestmark = pytest.mark.needs_browser


async def test_who_may_not_be_in_a_thread_is_told(browser: Browser, site: Site):
    thread, user = unique("th"), unique("c")
    options = site.options(site.token(user, "customer", threads=[thread]))
    options["url"] = site.url("portal")
    tab = await desk(browser, site, thread, options=options)
    site.add("thread:revoke", {"thread_id": thread, "user_id": user})
    await tab.has("state", "forbidden")
    other = unique("th")
    await tab.show(other)
    await tab.has("state", "forbidden")
    assert len(tab.live) == 1


@pytest.mark.parametrize("role", ["attendant", "customer"])
async def test_client_that_is_denied_is_told_apart_from_one_that_is_offline(
    browser: Browser, site: Site, role: str
):
    user = unique("u")
    tab = Desk(await opened(browser, site))
    await tab.mount(site.options(site.token(user, role)), unique("th"))
    if role == "attendant":
        await tab.has("status", "connected")
        site.add("user:disconnect", {"user_id": user, "namespace": "hub"})
    await tab.has("status", "denied")
    assert not tab.live


async def test_page_of_an_origin_that_is_not_allowed_is_told_where_to_look(browser: Browser, site: Site):
    page = await browser.new_page()
    origin = site.address.replace("127.0.0.1", "localhost")
    await page.goto(origin)
    await page.wait_for_function("window.loaded")
    tab = Desk(page)
    await tab.mount(site.options(), unique("th"))
    await tab.has("refusal", f"no answer for {origin}: is it in the server's ALLOWED_ORIGINS?")


async def test_refused_role_is_given_as_the_reason(browser: Browser, site: Site):
    tab = Desk(await opened(browser, site))
    await tab.mount(site.options(site.token(unique("u"), "customer")), unique("th"))
    await tab.has("status", "denied")
    refusal = await tab.value("page.socket.refusal")
    assert (refusal["status"], refusal["code"]) == (403, "forbidden_role")


async def test_hundred_events_that_wait_beside_sixty_joins_are_all_sent_within_the_limits(
    browser: Browser, site: Site
):
    tab = await desk(browser, site, unique("th"))
    await tab.value("page.socket.disconnect()")
    await tab.value(
        """() => {
            page.errors = [];
            page.acks = 0;
            page.socket.when("error", ({ code }) => page.errors.push(code));
            page.socket.connect();
            for (let n = 0; n < 60; n++) page.socket.join(n);
            for (let n = 0; n < 100; n++)
                page.socket.call("presence:online", {}).then(() => page.acks++, ({ code }) => page.errors.push(code));
        }"""
    )
    await tab.page.wait_for_function("page.acks + page.errors.length === 100")
    await tab.page.wait_for_function("page.socket.isIn(59)")
    assert await tab.value("page.errors") == []
    assert (
        await tab.value("Array.from({ length: 60 }, (_, n) => n).filter((n) => !page.socket.isIn(n))") == []
    )


async def test_frame_above_the_servers_limit_is_refused_and_the_connection_stays(
    browser: Browser, site: Site
):
    thread = unique("th")
    tab = await desk(browser, site, thread)
    code = await tab.value(
        """(thread_id) => page.socket
            .call("cursor:move", { thread_id, position: "\u20ac".repeat(22_000) })
            .catch(({ code }) => code)""",
        thread,
    )
    assert code == "too_large"
    await tab.saw(message(site, thread, "still-here"))
    assert len(tab.connections) == 1


async def test_next_user_of_the_tab_gets_nothing_of_the_last_one(browser: Browser, site: Site):
    thread, ana, bob = unique("th"), unique("u"), unique("u")
    tab = await desk(browser, site, thread, options=site.options(site.token(ana), site.token(bob)))
    await tab.value("page.socket.disconnect()")
    await tab.value("page.socket.connect()")
    await tab.has("state", "in")
    site.add("user:notification", {"user_id": ana, "text": "for-ana"})
    await tab.saw(message(site, thread, "for-both"))
    assert await tab.value("page.asked") == 2
    assert [connection.url for connection in tab.connections] == [site.url("hub")] * 2  # nothing to resume
