"""Typing and presence, as the React hooks show them in a real browser."""

from __future__ import annotations

import asyncio
from signal import SIGKILL
from typing import Any

import pytest
from playwright.async_api import Browser

from tests.e2e.harness import unique
from tests.e2e.hooks import desk
from tests.e2e.site import Site

pytestmark = pytest.mark.needs_browser


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
