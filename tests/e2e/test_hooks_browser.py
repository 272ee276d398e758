"""The React hooks in a real browser, under StrictMode, against real processes."""

from __future__ import annotations

import asyncio
import json
import time
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest
from playwright.async_api import Browser, expect

from tests.e2e.browser import Window
from tests.e2e.harness import eventually, free_port, unique
from tests.e2e.hooks import Desk, desk, message
from tests.e2e.site import Site, opened

pytestmark = pytest.mark.needs_browser


# --- One connection ----------------------------------------------------------------------------------


async def test_strict_mode_opens_one_connection_and_unmounting_closes_it(browser: Browser, site: Site):
    threads = [unique("th") for _ in range(3)]
    tab = await desk(browser, site, *threads, group="attendants")
    assert len(tab.connections) == 1
    await tab.unmount()
    await eventually(lambda: not tab.live)
    assert (len(tab.connections), tab.errors) == (1, [])


async def test_a_hundred_mounts_and_unmounts_leave_no_connection(browser: Browser, site: Site):
    thread, options = unique("th"), site.options()
    tab = await desk(browser, site, options=options)
    # In the page, where they follow each other at once: a connection without users lingers for a second only.
    await tab.value(
        """async (thread) => {
            for (const threads of [...Array(100).fill([[thread], []]).flat(), [thread]]) {
                page.show({ threads });
                await new Promise((done) => setTimeout(done));
            }
        }""",
        thread,
    )
    await tab.has("state", "in")
    assert len(tab.connections) == 1  # kept from one page to the next
    for _ in range(20):
        await tab.unmount()
        await tab.mount(options, thread)
    await tab.has("state", "in")
    await eventually(lambda: len(tab.live) == 1)
    await tab.unmount()
    await eventually(lambda: not tab.live)
    assert tab.errors == []


async def test_component_that_suspends_keeps_the_connection(browser: Browser, site: Site):
    thread = unique("th")
    tab = await desk(browser, site, thread)
    await tab.show(thread, suspended=True)
    await expect(tab.page.locator("#fallback")).to_have_text("waiting")
    hidden = message(site, thread, "while-suspended")
    await tab.saw(hidden)
    await tab.value("page.resume()")
    await expect(tab.page.locator("#fallback")).to_have_count(0)
    await tab.saw(hidden, message(site, thread, "after"))
    assert (len(tab.connections), len(tab.live), tab.errors) == (1, 1, [])


# --- Every message once ------------------------------------------------------------------------------


async def test_two_tabs_see_every_message_once(browser: Browser, site: Site):
    thread, options = unique("th"), site.options()
    tabs = [await desk(browser, site, thread, options=options) for _ in range(2)]
    messages = [message(site, thread, number) for number in range(50)]
    for tab in tabs:
        await tab.saw(*messages)
    await tabs[0].unmount()
    await eventually(lambda: not tabs[0].live)
    await tabs[1].saw(*messages, message(site, thread, "for-the-other"))


async def test_thousand_messages_while_the_server_is_killed_are_handled_once_without_a_render(
    browser: Browser, site: Site
):
    thread = unique("th")
    # However long the server takes to start, there are few attempts, each of which renders the status.
    options = {**site.options(), "reconnectionDelay": 1000, "reconnectionDelayMax": 2000}
    tab = await desk(browser, site, thread, options=options)
    rendered = await tab.value("page.renders")
    messages = [message(site, thread, number) for number in range(500)]
    await tab.saw(*messages)
    assert await tab.value("page.renders") == rendered
    for number in range(500, 1000):
        messages.append(message(site, thread, number))
        if number in {600, 800}:
            site.sockets.stop(SIGKILL)
            site.sockets = await asyncio.to_thread(site.start_sockets)
            await tab.has("status", "connected")
    await tab.saw(*messages)
    assert await tab.value("page.renders") - rendered < 100  # of the status, and not of messages
    assert await tab.value("page.gaps") == []


async def test_message_that_is_lost_for_good_is_a_gap(browser: Browser, site: Site):
    thread = unique("th")
    tab = await desk(browser, site, thread)
    site.sockets.stop(SIGKILL)
    await tab.has("status", "offline")
    message(site, thread, "lost")
    await eventually(lambda: site.redis.keys(site.key(f"*{thread}*")))
    for name in site.redis.keys(site.key(f"*{thread}*")):
        site.redis.delete(name)
    site.sockets = await asyncio.to_thread(site.start_sockets)
    await tab.page.wait_for_function("(room) => page.gaps.includes(room)", arg=f"thread:{thread}")
    assert await tab.value("page.seen") == []
    await tab.saw(message(site, thread, "live-again"))


# --- Networks, tokens, and what browsers do to pages -------------------------------------------------


async def test_page_that_was_offline_gets_what_it_missed(browser: Browser, site: Site):
    thread = unique("th")
    tab = await desk(browser, site, thread)
    # Chromium says `offline`, opens no new WebSocket and keeps an open one: the client has to close it.
    await tab.page.context.set_offline(True)
    await tab.has("status", "offline")
    await eventually(lambda: not tab.live)
    missed = message(site, thread, "missed")
    await tab.page.context.set_offline(False)
    await tab.saw(missed, message(site, thread, "live"))
    assert await tab.value("page.gaps") == []


async def test_server_that_hangs_is_noticed_by_its_silence(browser: Browser, site: Site):
    thread, port = unique("th"), free_port()
    hanging = await asyncio.to_thread(site.start_sockets, port, REALTIME_HEARTBEAT_INTERVAL="0.5")
    options = {**site.options(), "url": site.url("hub", port=port), "connectTimeout": 1000}
    tab = await desk(browser, site, thread, options=options)
    hanging.signal(SIGSTOP)
    await tab.page.wait_for_function("page.socket.status !== 'connected'")
    missed = message(site, thread, "missed")
    hanging.signal(SIGCONT)
    await tab.saw(missed, message(site, thread, "live"))
    assert await tab.value("page.gaps") == []
    hanging.stop()


async def test_hidden_and_frozen_tab_misses_nothing(site: Site):
    """It is really behind another one (Playwright cannot do that), and the browser stops it altogether."""
    thread = unique("th")
    view = {"threads": [thread]}
    async with Window.open() as window, window.tab(site.address) as tab:
        await tab.wait_for("window.loaded")
        await tab.evaluate(f"page.mount({json.dumps(site.options())}, {json.dumps(view)})")
        await tab.wait_for("page.socket?.isIn('thread:" + thread + "')")
        async with window.tab("about:blank"):
            await tab.wait_for("document.visibilityState === 'hidden'")
            messages = [message(site, thread, "hidden")]
            await tab.wait_for("page.seen.length === 1")
            await tab.call("Page.setWebLifecycleState", state="frozen")
            site.sockets.stop(SIGKILL)
            messages.append(message(site, thread, "frozen"))
            site.sockets = await asyncio.to_thread(site.start_sockets)
            await tab.call("Page.setWebLifecycleState", state="active")
        await window.show(tab)
        await tab.wait_for("document.visibilityState === 'visible'")
        messages.append(message(site, thread, "visible"))
        await tab.wait_for("page.seen.length >= 3")
        assert await tab.evaluate("page.seen") == messages
        assert await tab.evaluate("page.gaps") == []


async def test_token_that_ends_is_refreshed_on_the_same_connection(browser: Browser, site: Site):
    thread, user = unique("th"), unique("u")
    tab = Desk(await opened(browser, site))
    first_ends = time.time() + 8
    sent: list[str] = []
    tab.page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(str(frame))))
    await tab.mount(site.options(site.token(user, ttl=8), site.token(user, ttl=3600)), thread)
    await tab.has("state", "in")
    connection = await tab.value("page.socket.connectionId")
    await eventually(lambda: any("auth:refresh" in frame for frame in sent))
    await eventually(lambda: time.time() > first_ends)
    await tab.saw(message(site, thread, "later"))
    assert await tab.value("[page.socket.connectionId, page.asked]") == [connection, 2]
    assert len(tab.connections) == 1


async def test_page_in_the_back_forward_cache_has_no_connection_and_gets_what_it_missed(
    browser: Browser, site: Site
):
    thread, hour = unique("th"), 3_600_000
    tab = Desk(await opened(browser, site))
    # No timer runs in the cache: until the page is shown, its next attempt is an hour away.
    await tab.value("page.luck = 0, Math.random = () => page.luck")
    await tab.mount({**site.options(), "reconnectionDelay": hour, "reconnectionDelayMax": hour}, thread)
    await tab.has("state", "in")
    # What the browser says; the cache itself cannot be had here (Playwright switches it off).
    say = """(type) => {
        page.luck = type === "pagehide" ? 1 : 0;
        window.dispatchEvent(new PageTransitionEvent(type, { persisted: true }));
    }"""
    await tab.page.evaluate(say, "pagehide")
    await tab.has("status", "offline")
    await eventually(lambda: not tab.live)
    away = message(site, thread, "away")
    await tab.page.evaluate(say, "pageshow")
    await tab.saw(away)
    assert await tab.value("page.gaps") == []
