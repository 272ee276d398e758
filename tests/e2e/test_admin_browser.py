"""What an operator does in the admin, in a real browser beside real processes."""

from __future__ import annotations

import contextlib
import json

import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.e2e.admin import System, signed_in
from tests.e2e.harness import eventually, unique

pytestmark = [pytest.mark.needs_browser, pytest.mark.usefixtures("clean")]


# --- Dead letters ------------------------------------------------------------------------------------


async def test_dead_letter_is_edited_sent_again_and_reaches_the_client_once(
    system: System,
    browser: Browser,
):
    thread = unique("t")
    system.add("thread:message", {"thread_id": thread, "body": "no id"})
    await eventually(lambda: _has_letters(system, 1))
    async with signed_in(browser, system) as page, system.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        await page.goto(f"{system.admin.url}/admin/presence/deadletter/")
        await page.get_by_text("The data does not fit the event.").wait_for()
        other = await page.context.new_page()  # of another operator, who has the same letter open
        for each in (page, other):
            await each.goto(f"{system.admin.url}/admin/presence/deadletter/")
            await each.get_by_role("link", name="Edit and send").click()
            await each.get_by_role("button", name="Check").click()
            await each.get_by_text("message_id: required").first.wait_for()
            message = json.dumps(
                {"event": "thread:message", "data": {"thread_id": thread, "message_id": "9"}}
            )
            await each.fill("#id_message", message)
            await each.get_by_role("button", name="Check").click()
            await each.get_by_text(f"hub thread:{thread}, portal thread:{thread}").wait_for()
        await page.get_by_role("button", name="Send again").click()
        await page.get_by_text("Sent 1 dead letter again.").wait_for()
        await client.expect("thread:message", message_id="9")
        await other.get_by_role("button", name="Send again").click()
        await other.get_by_text("1 dead letter was gone").wait_for()
        system.add("thread:message", {"thread_id": thread, "message_id": "10"})
        await client.expect("thread:message", message_id="10")  # and nothing before it
        assert [event["data"]["message_id"] for event in client.received("thread:message")] == ["9", "10"]
        await page.goto(f"{system.admin.url}/admin/presence/live/log/")
        assert await page.get_by_text("Edited and sent again: thread:message").count() == 1


async def test_letters_are_sent_again_in_bulk(system: System, browser: Browser):
    thread = unique("t")
    for number in range(3):
        system.redis.xadd(
            system.key("dead"),
            {
                "reason": "unknown_event: 'x' is not in the catalogue",
                "source": "stream",
                "message": json.dumps(
                    {"event": "thread:message", "data": {"thread_id": thread, "message_id": str(number)}}
                ),
            },
        )
    async with signed_in(browser, system) as page, system.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        await page.goto(f"{system.admin.url}/admin/presence/deadletter/")
        await page.get_by_label("Select all on this page").check()
        await page.get_by_role("button", name="Send selected again").click()
        await page.get_by_text("Send 3 dead letters again?").wait_for()
        await page.get_by_role("button", name="Send again").click()
        await page.get_by_text("Sent 3 dead letters again.").wait_for()
        for number in range(3):
            await client.expect("thread:message", message_id=str(number))
        await page.get_by_text("There are no dead letters").wait_for()


async def _has_letters(system: System, count: int) -> bool:
    return len(system.dead_letters()) == count


# --- The test event, charts, and the frame -----------------------------------------------------------


async def test_event_is_filled_in_as_it_is_chosen_unless_something_was_typed(
    system: System,
    browser: Browser,
):
    async with signed_in(browser, system) as page:
        await page.goto(f"{system.admin.url}/admin/presence/live/event/")
        await page.select_option("#id_event", "thread:message")
        assert json.loads(await page.input_value("#id_payload")) == {"thread_id": "1", "message_id": "1"}
        await page.select_option("#id_event", "queue:new")
        assert json.loads(await page.input_value("#id_payload")) == {"item_id": "1"}
        await page.fill("#id_payload", '{"item_id": "mine"}')
        await page.select_option("#id_event", "queue:taken")
        assert json.loads(await page.input_value("#id_payload")) == {"item_id": "mine"}
        await page.get_by_role("button", name="Check").click()
        await page.get_by_text("Send this event to all connections in these rooms?").wait_for()


async def test_charts_are_as_wide_as_their_place(system: System, browser: Browser):
    async with signed_in(browser, system) as page, system.client("hub", user_id="ada", name="Ada"):
        url = f"{system.admin.url}/admin/presence/availability/"
        await eventually(lambda: _shows(page, url, "Ada"))
        for width in (390, 768, 1280):
            await page.set_viewport_size({"width": width, "height": 800})
            await page.goto(url)
            cell, drawn = await page.evaluate(
                "[...document.querySelectorAll('td .presence-chart')].map(each => ["
                "each.closest('td').clientWidth, each.clientWidth])[0]"
            )
            assert cell - 20 <= drawn <= cell, width
            await page.get_by_role("link", name="Ada", exact=True).click()
            await page.locator(".presence-scroll").wait_for()
            place, drawn = await page.evaluate(
                "['.presence-scroll', '.presence-chart'].map(each => document.querySelector(each).clientWidth)"
            )
            assert drawn == place - 40, width  # beside the scale
        await page.get_by_text("Days and hours in UTC").wait_for()


async def _shows(page: Page, url: str, text: str) -> bool:
    await page.goto(url)
    return await page.get_by_role("link", name=text).count() > 0


async def test_admin_has_a_name_and_an_icon_of_its_own(system: System, browser: Browser):
    async with signed_in(browser, system) as page:
        missing: list[str] = []
        page.on("response", lambda answer: missing.append(answer.url) if answer.status >= 400 else None)
        for path in ("", "presence/live/", "presence/presencerecord/"):
            await page.goto(f"{system.admin.url}/admin/{path}")
            await expect(page.locator("#site-name")).to_have_text("Realtime sockets")
            assert (await page.title()).endswith("| Realtime sockets")
            icon = await page.locator("link[rel=icon]").get_attribute("href")
            answer = await page.request.get(f"{system.admin.url}{icon}")
            assert answer.headers["content-type"] == "image/svg+xml"
        assert missing == []


async def test_pages_work_under_a_strict_content_security_policy(system: System, browser: Browser):
    refused: list[str] = []

    async def strictly(route: Route) -> None:
        answer = await route.fetch()
        headers = {**answer.headers, "content-security-policy": "default-src 'self'; frame-ancestors 'none'"}
        await route.fulfill(response=answer, headers=headers)

    async with signed_in(browser, system) as page:
        await page.route("**/admin/presence/**", strictly)
        page.on(
            "console", lambda entry: refused.append(entry.text) if "Security Policy" in entry.text else None
        )
        await page.goto(f"{system.admin.url}/admin/presence/live/")
        as_of = page.locator(".presence-as-of dd")
        await expect(as_of).not_to_have_text(
            await as_of.inner_text()
        )  # Playwright's own functions need `eval`
        await page.goto(f"{system.admin.url}/admin/presence/live/event/?event=queue:new")
        await page.select_option("#id_event", "chat:ended")
        assert json.loads(await page.input_value("#id_payload")) == {"thread_id": "1"}
        for path in ("presence/deadletter/", "presence/availability/"):
            await page.goto(f"{system.admin.url}/admin/{path}")
        assert refused == []


# --- Every page, at any width ------------------------------------------------------------------------

PAGES = [
    *("presence/live/", "presence/live/instances/", "presence/live/rooms/", "presence/live/event/"),
    *("presence/live/log/", "presence/deadletter/", "presence/availability/", "presence/presencerecord/"),
    "presence/presencetransition/",
]


async def test_name_without_a_space_pushes_no_column_away(system: System, browser: Browser):
    client = system.client("hub", user_id="u" * 64, name="x" * 200)
    async with signed_in(browser, system, "pt-BR") as page, client:
        url = f"{system.admin.url}/admin/presence"
        await eventually(lambda: _shows(page, f"{url}/presencerecord/", "u" * 64))
        for width in (390, 1280):
            await page.set_viewport_size({"width": width, "height": 900})
            for path, column, most in (
                ("presencerecord/", ".field-name", 300),
                ("presencetransition/", ".field-name", 300),
                ("availability/", "tbody th", 500),
                ("live/", "tbody th", 500),
            ):
                await page.goto(f"{url}/{path}")
                shown = await page.locator(column).first.evaluate("each => each.clientWidth")
                assert shown <= most, (path, width)
        await page.goto(f"{url}/live/instances/")
        scrolled = "document.querySelector('.presence-results')"
        assert await page.evaluate(f"{scrolled}.scrollWidth <= {scrolled}.clientWidth")


async def test_pages_fit_and_work(system: System, browser: Browser):
    for letter in ("no json", '{"event":"nope:nope","data":{"' + "y" * 3000 + '":1}}', "\x00\x1b"):
        system.redis.xadd(system.key("stream"), {"message": letter})
    async with (
        contextlib.AsyncExitStack() as all_clients,
        signed_in(browser, system, "pt-BR", hurry=1) as page,
    ):
        for number in range(12):
            client = await all_clients.enter_async_context(system.client("hub", name=f"Attendant {number}"))
            await client.call("join:thread", {"thread_id": unique("a-thread-with-a-long-name")})
        for width, scheme in ((390, "light"), (800, "dark"), (1280, "light")):
            await page.set_viewport_size({"width": width, "height": 900})
            await page.emulate_media(color_scheme=scheme)
            for path in PAGES:
                answer = await page.goto(f"{system.admin.url}/admin/{path}")
                assert answer is not None
                assert answer.status == 200, path
                assert await page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
        await page.goto(f"{system.admin.url}/admin/presence/live/")
        await page.get_by_role("link", name="Attendant 3").click()
        await page.get_by_role("link", name="Desconectar usuário").click()
        await page.get_by_role("button", name="Desconectar").click()
        await page.get_by_text("O usuário está sendo desconectado.").wait_for()
