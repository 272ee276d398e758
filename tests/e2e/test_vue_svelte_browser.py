"""The composables of Vue and the stores of Svelte in a real browser, against real processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from signal import SIGKILL
from typing import Any

import pytest
from playwright.async_api import Browser

from tests.e2e.harness import eventually, unique
from tests.e2e.hooks import PAGE, Desk, desk, message
from tests.e2e.site import Site, serving

pytestmark = pytest.mark.needs_browser


@pytest.fixture(scope="module", params=["vue", "svelte"])
def site(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with serving(redis_url, tmp_path_factory, PAGE, f"test/pages/{request.param}.ts") as site:
        yield site


async def closes(tab: Desk) -> None:
    """Unmounting leaves no connection, and nothing went wrong until then."""
    await tab.unmount()
    await eventually(lambda: not tab.live)
    # The browser logs each attempt to reach a server that is down.
    assert [error for error in tab.errors if not error.startswith("Failed to load resource")] == []


async def test_components_share_one_connection_which_ends_with_them(browser: Browser, site: Site):
    threads = [unique("th") for _ in range(3)]
    tab = await desk(browser, site, *threads, group="attendants")
    assert await tab.page.locator(".connected").all_text_contents() == ["true"] * 3
    await tab.saw(message(site, threads[0], "to-one-of-three"))
    assert len(tab.connections) == 1
    await closes(tab)
    assert len(tab.connections) == 1


async def test_component_whose_thread_changes_leaves_the_former_one(browser: Browser, site: Site):
    former, latter = unique("th"), unique("th")
    tab = await desk(browser, site, former)
    seen = [message(site, former, "former")]
    await tab.saw(*seen)
    await tab.show(latter)
    await tab.page.wait_for_selector(f"#thread-{latter}")
    await tab.has("state", "in")
    await tab.saw(*seen, message(site, latter, "latter"))
    await tab.page.wait_for_function("(room) => !page.socket.isIn(room)", arg=f"thread:{former}")
    assert await tab.value(f"page.socket.isIn('thread:{latter}')")
    await tab.show()
    await tab.page.wait_for_function("(room) => !page.socket.isIn(room)", arg=f"thread:{latter}")
    await eventually(lambda: not tab.live)
    assert (len(tab.connections), tab.errors) == (1, [])


async def test_messages_while_the_server_restarts_are_handled_once(browser: Browser, site: Site):
    thread = unique("th")
    tab = await desk(browser, site, thread)
    messages = [message(site, thread, number) for number in range(50)]
    site.sockets.stop(SIGKILL)
    await tab.has("connected", "false")
    messages.append(message(site, thread, "missed"))
    site.sockets = await asyncio.to_thread(site.start_sockets)
    await tab.has("status", "connected")
    await tab.saw(*messages, message(site, thread, "live"))
    await tab.has("state", "in")
    await closes(tab)


async def test_typing_is_seen_in_the_other_tab_until_it_stops(browser: Browser, site: Site):
    thread = unique("th")
    ana = await desk(browser, site, thread, options=site.options(site.token(unique("u"), name="Ana")))
    bob = await desk(browser, site, thread)
    for stop in ("page.stopTyping()", "page.unmount()"):
        await ana.value("page.sendTyping()")
        await bob.has("typists", "Ana")
        await ana.has("typists", "")
        await ana.value(stop)
        await bob.has("typists", "")
    await closes(bob)


async def test_people_of_a_group_are_listed_as_they_change(browser: Browser, site: Site):
    group, thread = unique("g"), unique("th")

    def options(name: str) -> dict[str, Any]:
        return site.options(site.token(unique("u"), name=name, groups=[group]))

    bob = await desk(browser, site, thread, options=options("Bob"), group=group)
    await bob.has("people", "Bob online")
    ana = await desk(browser, site, thread, options=options("Ana"))
    await bob.has("people", "Ana online, Bob online")
    await ana.show(thread, group=group)  # long after the server sent the list
    await ana.has("people", "Ana online, Bob online")
    await ana.value("page.socket.emit('presence:away', {})")
    for tab in (ana, bob):
        await tab.has("people", "Ana away, Bob online")
    for tab in (ana, bob):
        await closes(tab)


async def test_customer_who_loses_a_thread_is_told(browser: Browser, site: Site):
    thread, user = unique("th"), unique("c")
    options = {**site.options(site.token(user, "customer", threads=[thread])), "url": site.url("portal")}
    tab = await desk(browser, site, thread, options=options)
    site.add("thread:revoke", {"thread_id": thread, "user_id": user})
    await tab.has("state", "forbidden")
    await tab.show(unique("th"))
    await tab.has("state", "forbidden")
    await closes(tab)
