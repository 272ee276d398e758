"""The demo's desk under hasty hands, slow answers, small windows and other scripts."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Route

from tests.e2e.desk import Desk, Screen
from tests.e2e.harness import eventually
from tests.e2e.test_demo_browser import connections, hand_out_tokens

pytestmark = pytest.mark.needs_browser


# --- Slow answers --------------------------------------------------------------------------------


async def test_lost_answer_with_the_next_tokens_does_not_end_the_session(desk: Desk, browser: Browser):
    page = await browser.new_page()
    await hand_out_tokens(page, ttl=3)
    lost: set[str | None] = set()

    async def lose_once(route: Route) -> None:
        if len(lost) < 2:
            lost.add(route.request.post_data)
            await route.fetch()
            await route.abort()
        else:
            await route.continue_()

    await page.route("**/demo/token/refresh/", lose_once)
    opened = connections(page)
    screen = await Screen(page).open(desk.page_url)
    await eventually(lambda: len(lost) == 2 and len(opened) == 4)
    for side in (screen.attendant, screen.customer):
        await side.is_connected()
