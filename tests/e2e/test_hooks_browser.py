"""The React hooks in a real browser, under StrictMode, against real processes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, WebSocket, expect

from tests.e2e.browser import Window
from tests.e2e.harness import eventually, free_port, unique
from tests.e2e.site import Site, opened, serving

pytestmark = pytest.mark.needs_browser

PAGE = """<!doctype html><title>hooks</title><link rel="icon" href="data:,"><div id="root"></div>
<script type="module" src="client.js"></script>"""


@pytest.fixture(scope="module")
def site(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(redis_url, tmp_path_factory, PAGE, "test/pages/hooks.tsx") as site:
        yield site


class Desk:
    """A tab with the hooks' page, in the words of who sits in front of it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.connections: list[WebSocket] = []
        self.errors: list[str] = []
        page.on("websocket", self._connected)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._said)

    def _connected(self, connection: WebSocket) -> None:
        self.connections.append(connection)

    def _said(self, line: ConsoleMessage) -> None:
        if line.type == "error" and not line.text.startswith("WebSocket connection"):
            self.errors.append(line.text)

    @property
    def live(self) -> list[WebSocket]:
        return [each for each in self.connections if not each.is_closed()]

    async def mount(self, options: dict[str, Any], *threads: str, **view: Any) -> None:
        await self.page.evaluate("(given) => page.mount(...given)", [options, {"threads": threads, **view}])

    async def show(self, *threads: str, **view: Any) -> None:
        await self.page.evaluate("(view) => page.show(view)", {"threads": threads, **view})

    async def unmount(self) -> None:
        await self.page.evaluate("page.unmount()")

    async def has(self, what: str, text: str) -> None:
        await expect(self.page.locator(f".{what}")).to_have_text(text)

    async def saw(self, *messages: str) -> None:
        """Exactly these, in this order, once the last of them has come."""

        async def has_last() -> bool:
            return (await self.value("page.seen"))[-1:] == [messages[-1]]

        await eventually(has_last)
        assert await self.value("page.seen") == list(messages)

    async def value(self, expression: str, argument: Any = None) -> Any:
        return await self.page.evaluate(expression, argument)


async def desk(
    browser: Browser, site: Site, *threads: str, options: dict[str, Any] | None = None, **view: Any
) -> Desk:
    """A tab that is connected, and in its threads."""
    desk = Desk(await opened(browser, site))
    await desk.mount(options or site.options(), *threads, **view)
    for thread in threads:
        await expect(desk.page.locator(f"#thread-{thread} .state")).to_have_text("in")
    return desk


def message(site: Site, thread: str, number: int | str) -> str:
    site.add("thread:message", {"thread_id": thread, "message_id": str(number)})
    return str(number)


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
    for _ in range(100):
        await tab.show(thread)
        await tab.show()
    await tab.show(thread)
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


# --- Typing, presence and refusals ---------------------------------------------------------------------


async def test_typing_is_seen_in_the_other_tab_until_it_stops(browser: Browser, site: Site):
    thread = unique("th")
    options = site.options(site.token(unique("u"), name="Ana"))
    ana = await desk(browser, site, thread, options=options)
    bob = await desk(browser, site, thread)
    await ana.value("page.sendTyping()")
    await bob.has("typists", "Ana")
    await ana.value("page.stopTyping()")
    await bob.has("typists", "")
    await ana.has("typists", "")
    await ana.value("page.sendTyping()")
    await bob.has("typists", "Ana")
    await ana.unmount()
    await bob.has("typists", "")


async def test_people_of_a_group_are_listed_in_order_and_as_they_change(browser: Browser, site: Site):
    group = unique("g")

    def options(name: str) -> dict[str, Any]:
        return site.options(site.token(unique("u"), name=name, groups=[group]))

    thread = unique("th")
    bob = await desk(browser, site, thread, options=options("Bob"), group=group)
    await bob.has("people", "Bob online")
    eve = await desk(browser, site, thread, options=options("Eve"))
    ana = await desk(browser, site, thread, options=options("Ana"), group=group)
    for tab in (ana, bob):
        await tab.has("people", "Ana online, Bob online, Eve online")
    # Mounted long after the server said who is there.
    await eve.show(thread, group=group)
    await eve.has("people", "Ana online, Bob online, Eve online")
    await eve.value("page.socket.emit('presence:away', {})")
    for tab in (ana, bob, eve):
        await tab.has("people", "Ana online, Bob online, Eve away")
    await ana.value("page.socket.emit('presence:offline', {})")
    await bob.has("people", "Bob online, Eve away")
    site.sockets.stop(SIGKILL)
    await bob.has("status", "offline")
    await bob.has("people", "Bob online, Eve away")
    site.sockets = await asyncio.to_thread(site.start_sockets)
    await bob.has("status", "connected")
    await bob.has("people", "Bob online, Eve away")


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
