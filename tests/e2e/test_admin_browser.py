"""What an operator does in the admin, in a real browser beside real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus

import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.e2e.browser import Tab, Window, require_chromium
from tests.e2e.harness import eventually, unique
from tests.e2e.test_live_view import System

pytestmark = pytest.mark.needs_browser

FETCHED = "performance.getEntriesByType('resource').filter(each => each.initiatorType == 'fetch').length"

QUICKLY = """
    window.waits = [];
    const wait = window.setTimeout;
    window.setTimeout = (act, milliseconds) => {
        waits.push(milliseconds);
        return wait(act, milliseconds / HURRY);
    };
"""
"""Notes how long a page waits, and lets it wait for a part of that."""


@pytest.fixture(scope="module")
def system(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One for all tests, with a recorder: to start it takes longer than what they do."""
    require_chromium()
    unlimited = {"REALTIME_LIMIT_NAME_LOGINS": "0", "REALTIME_LIMIT_ADDRESS_LOGINS": "0"}
    with System(tmp_path_factory.mktemp("admin"), redis_url, **unlimited) as system:
        system.open().start("runrecorder")
        yield system


@pytest.fixture(autouse=True)
async def clean(system: System) -> None:
    """No dead letter and no connection is left of the test before."""
    system.redis.delete(system.key("dead"))
    await eventually(lambda: _is_empty(system))


async def _is_empty(system: System) -> bool:
    return len(await system.admin.instances()) == 2 and not await system.admin.find()


@contextlib.asynccontextmanager
async def signed_in(
    browser: Browser, system: System, locale: str = "en-US", *, hurry: int = 10
) -> AsyncIterator[Page]:
    """A page of an operator; nothing on it fails, and nothing breaks the policy that it is served with.

    It refreshes itself so many times as often: the more often, the less time to click on what is replaced.
    """
    context = await browser.new_context(locale=locale)
    await context.add_init_script(QUICKLY.replace("HURRY", str(hurry)))
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
        assert await page.evaluate("waits") == [5000]
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
