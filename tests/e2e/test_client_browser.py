"""The TypeScript client in a real browser, against real processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from signal import SIGKILL
from typing import Any

import pytest
from playwright.async_api import Browser, Page

from tests.e2e.harness import eventually, unique
from tests.e2e.site import Site, opened, serving

pytestmark = pytest.mark.needs_browser

PAGE = """<!doctype html><title>client</title><script type="module">
import { Socket } from "./client.js";
window.seen = []; window.gaps = []; window.statuses = []; window.errors = [];
window.start = (options) => {
  const tokens = options.tokens;
  window.asked = 0;
  const socket = (window.socket = new Socket({
    ...options,
    getToken: () => tokens[Math.min(window.asked++, tokens.length - 1)],
  }));
  socket.on("thread:message", ({ message_id }) => window.seen.push(message_id));
  socket.when("gap", (gap) => window.gaps.push(gap.room));
  socket.when("status", (status) => window.statuses.push(status));
  socket.when("error", (error) => window.errors.push(error.code));
};
window.loaded = true;
</script>"""


@pytest.fixture(scope="module")
def site(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(redis_url, tmp_path_factory, PAGE, "src/index.ts") as site:
        yield site


async def tab(browser: Browser, site: Site, options: dict[str, Any], *threads: str) -> Page:
    """A page that is connected, and in some threads."""
    page = await opened(browser, site)
    await page.evaluate("(options) => window.start(options)", options)
    await page.wait_for_function("window.socket.connected")
    for thread in threads:
        await page.evaluate("(thread) => { window.socket.join(thread); }", thread)
        await page.evaluate("(thread) => window.socket.call('join:thread', { thread_id: thread })", thread)
    return page


async def seen(page: Page) -> list[str]:
    return await page.evaluate("window.seen")


async def test_a_thousand_messages_with_drops_are_seen_once_and_in_order_in_every_tab(
    browser: Browser, site: Site
):
    thread = unique("th")
    pages = [await tab(browser, site, site.options(), thread) for _ in range(2)]
    everything = [str(number) for number in range(1000)]
    for number in everything:
        site.add("thread:message", {"thread_id": thread, "message_id": number})
        if int(number) % 250 == 100:
            site.sockets.stop(SIGKILL)
            site.sockets = await asyncio.to_thread(site.start_sockets)
        await asyncio.sleep(0.002)
    for page in pages:
        await eventually(lambda page=page: _has(page, "999"), 30)
        assert await seen(page) == everything
        assert await page.evaluate("window.gaps") == []


async def _has(page: Page, last: str) -> bool:
    return (await seen(page))[-1:] == [last]


async def test_server_that_is_gone_for_a_while_is_found_again(browser: Browser, site: Site):
    thread = unique("th")
    page = await tab(browser, site, site.options(), thread)
    site.sockets.stop(SIGKILL)
    await page.wait_for_function("window.socket.status === 'offline'")
    site.add("thread:message", {"thread_id": thread, "message_id": "missed"})
    await asyncio.sleep(1.5)
    site.sockets = await asyncio.to_thread(site.start_sockets)
    await page.wait_for_function("window.seen.includes('missed')")
    assert await page.evaluate("window.gaps") == []


async def test_token_that_ends_is_refreshed_without_a_reconnect(browser: Browser, site: Site):
    user = unique("u")
    page = await tab(browser, site, site.options(site.token(user, ttl=5), site.token(user, ttl=3600)))
    connection = await page.evaluate("window.socket.connectionId")
    await asyncio.sleep(6)
    assert await page.evaluate("[window.socket.connectionId, window.asked]") == [connection, 2]


async def test_refused_client_is_told_apart_from_one_that_is_offline(browser: Browser, site: Site):
    page = await opened(browser, site)
    options = site.options(site.token(unique("c"), "customer"))
    await page.evaluate("(options) => window.start(options)", options)
    await page.wait_for_function("window.socket.status === 'denied'")


async def test_user_who_is_disconnected_does_not_come_again(browser: Browser, site: Site):
    user = unique("u")
    page = await tab(browser, site, site.options(site.token(user)))
    site.add("user:disconnect", {"user_id": user, "namespace": "hub"})
    await page.wait_for_function("window.socket.status === 'denied'")
    await asyncio.sleep(1)
    assert (await page.evaluate("window.statuses"))[-1] == "denied"


async def test_page_in_the_back_forward_cache_has_no_connection_and_gets_what_it_missed(
    browser: Browser, site: Site
):
    thread = unique("th")
    page = await tab(browser, site, site.options(), thread)
    # What the browser says; the cache itself cannot be had here (Playwright switches it off).
    say = "(type) => { window.dispatchEvent(new PageTransitionEvent(type, { persisted: true })); }"
    await page.evaluate(say, "pagehide")
    assert await page.evaluate("window.socket.status") == "offline"
    site.add("thread:message", {"thread_id": thread, "message_id": "away"})
    await page.evaluate(say, "pageshow")
    await page.wait_for_function("window.seen.includes('away')")
    assert await page.evaluate("window.gaps") == []


async def test_typing_reaches_the_other_tab(browser: Browser, site: Site):
    thread = unique("th")
    one, other = [await tab(browser, site, site.options(), thread) for _ in range(2)]
    await other.evaluate("() => { window.socket.on('thread:typing', (data) => { window.typing = data; }); }")
    await one.evaluate("(thread) => window.socket.emit('typing:start', { thread_id: thread })", thread)
    await other.wait_for_function("window.typing?.typing === true")
    assert json.loads(await other.evaluate("JSON.stringify(window.typing)"))["thread_id"] == thread
