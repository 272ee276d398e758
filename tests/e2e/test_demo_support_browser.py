"""The demo's desk as a support lead judges it: nothing is lost, nothing untrue is shown, nothing ends by accident."""

from __future__ import annotations

import asyncio
import re
from signal import SIGKILL

import pytest
from playwright.async_api import Browser, Locator, Page, Route, expect

from tests.e2e.browser import Window
from tests.e2e.desk import Desk, Screen, Side
from tests.e2e.harness import unique

pytestmark = pytest.mark.needs_browser


# --- Before a chat is accepted -------------------------------------------------------------------


async def test_customers_first_message_is_the_first_of_the_chat(screen: Screen):
    topic = unique("invoice ")
    await screen.customer.start_chat(topic)
    await expect(screen.customer.messages).to_have_count(1)
    await expect(screen.customer.messages).to_contain_text(topic)
    await screen.attendant.take(topic)
    await expect(screen.attendant.messages).to_contain_text(topic)


async def test_customer_writes_while_waiting_in_every_tab_and_loses_no_half_written_message(
    screen: Screen, desk: Desk, browser: Browser
):
    topic = unique("about ")
    await screen.customer.start_chat(topic)
    other = await Screen(await browser.new_page()).open(desk.page_url)
    await other.customer.reads(topic)
    await screen.customer.write("My number is 4711.")
    for side in (screen.customer, other.customer):
        await side.reads("My number is 4711.")

    await screen.customer.draft.press_sequentially("And one")
    await screen.attendant.take(topic)
    await screen.attendant.reads("My number is 4711.")
    await expect(screen.customer.state).to_have_text("with Ana Lima")
    await expect(screen.customer.draft).to_have_value("And one")
    await screen.customer.draft.press_sequentially(" more thing")
    await screen.customer.draft.press("Enter")
    await screen.attendant.reads("And one more thing")


async def test_customer_cancels_and_is_asked_once(screen: Screen):
    topic = unique("about ")
    await screen.customer.start_chat(topic)
    await expect(screen.customer.button("End chat")).to_have_count(0)
    await screen.customer.button("Cancel").click()
    await screen.customer.answer("Cancel this chat?", "Keep waiting")
    await expect(screen.customer.state).to_have_text("waiting for an attendant…")
    await screen.customer.button("Cancel").click()
    await screen.customer.answer("Cancel this chat?", "Cancel chat")
    await expect(screen.customer.notes).to_contain_text("Carla Reis cancelled the chat.")
    await expect(screen.attendant.listed("Queue").filter(has_text=topic)).to_have_count(0)


async def test_waiting_time_in_the_queue_runs(screen: Screen):
    topic = unique("about ")
    await screen.customer.start_chat(topic)
    waited = screen.attendant.listed("Queue").filter(has_text=topic).get_by_role("timer", name="Waiting time")
    await expect(waited).to_have_text(re.compile(r"^\d+:\d\d$"))
    first = await waited.inner_text()
    await expect(waited).not_to_have_text(first)


# --- The end of a chat ---------------------------------------------------------------------------


async def test_ending_asks_once_and_the_log_records_by_whom_and_when(screen: Screen):
    await screen.chat()
    await screen.attendant.button("End chat").click()
    await expect(
        screen.page.get_by_role("dialog").get_by_role("button", name="Keep chatting")
    ).to_be_focused()
    await screen.page.keyboard.press("Escape")
    await expect(screen.page.get_by_role("dialog")).to_have_count(0)
    await expect(screen.customer.state).to_have_text("with Ana Lima")

    await screen.attendant.end_chat()
    for side in (screen.attendant, screen.customer):
        await expect(side.notes.last).to_contain_text("Ana Lima ended the chat.")
        await expect(side.notes.last.locator("time[datetime]")).to_have_text(re.compile(r"\d:\d\d"))


async def test_ended_chat_has_no_field_to_write_in(screen: Screen):
    await screen.chat()
    await screen.customer.end_chat()
    for side in (screen.attendant, screen.customer):
        await expect(side.state).to_have_text("ended")
        await expect(side.draft).to_have_count(0)
    await screen.attendant.button("Close").click()
    await expect(screen.attendant.listed("My chats")).to_have_count(0)


# --- Writing -------------------------------------------------------------------------------------


async def test_shift_and_enter_keep_line_breaks(screen: Screen):
    await screen.chat()
    await screen.customer.draft.focus()
    for key in ("a", "Shift+Enter", "Shift+Enter", "b", "Enter"):
        await screen.page.keyboard.press(key)
    for side in (screen.customer, screen.attendant):
        await expect(side.messages).to_have_count(2)
        assert (await side.messages.last.inner_text()).endswith("a\n\nb")


async def test_draft_stays_with_its_chat(screen: Screen):
    first, second = unique("first "), unique("second ")
    await screen.customer.start_chat(first)
    await screen.attendant.take(first)
    await screen.attendant.draft.fill("Half an answer")
    await screen.customer.sign_in_as("davi")
    await screen.customer.start_chat(second)
    await screen.attendant.take(second)
    await expect(screen.attendant.draft).to_have_value("")
    await screen.attendant.listed("My chats").filter(has_text=first).get_by_role("button").click()
    await expect(screen.attendant.draft).to_have_value("Half an answer")


async def test_message_that_cannot_be_sent_stays_with_its_chat_as_a_draft(screen: Screen):
    first, second = unique("first "), unique("second ")
    await screen.customer.start_chat(first)
    await screen.attendant.take(first)
    await screen.customer.sign_in_as("davi")
    await screen.customer.start_chat(second)
    await screen.attendant.take(second)
    taken = screen.attendant.listed("My chats").filter(has_text=second).get_by_role("button")
    await expect(taken).to_have_attribute("aria-current", "true")
    await screen.page.route("**/messages/", lambda route: route.abort())
    await screen.attendant.write("An answer")
    await expect(screen.attendant.problem).to_contain_text("The server cannot be reached.")
    for topic in (first, second):
        await screen.attendant.listed("My chats").filter(has_text=topic).get_by_role("button").click()
    await expect(screen.attendant.draft).to_have_value("An answer")


# --- Transfer ------------------------------------------------------------------------------------


async def test_chat_is_transferred_to_a_colleague_whose_title_counts_it(
    screen: Screen, desk: Desk, browser: Browser
):
    other = await Screen(await browser.new_page()).open(desk.page_url)
    await other.attendant.sign_in_as("bia")
    await other.attendant.is_connected()
    await screen.chat()
    await screen.customer.write("Hello?")
    await screen.attendant.button("Transfer").click()
    dialog = screen.page.get_by_role("dialog", name="Transfer to")
    await dialog.get_by_role("button", name="Bia Souza").click()
    await expect(screen.attendant.listed("My chats")).to_have_count(0)

    await expect(other.page).to_have_title("(1) Support desk · realtime-sockets")
    await other.attendant.toast("about ").get_by_role("button", name="Show").click()
    await other.attendant.reads("Hello?")
    await expect(other.page).to_have_title("Support desk · realtime-sockets")
    for side in (screen.customer, other.attendant):
        await expect(side.notes.last).to_contain_text("Ana Lima transferred the chat to Bia Souza.")
    await expect(screen.customer.state).to_have_text("with Bia Souza")
    await other.attendant.write("Hello from Bia.")
    await screen.customer.reads("Hello from Bia.")


async def test_title_of_a_hidden_tab_counts_unread_messages_until_it_is_shown(desk: Desk):
    thread = desk.api("carla", "conversations/", {"topic": unique("about ")})["thread_id"]
    desk.api("ana", f"conversations/{thread}/take/", {})
    async with Window.open() as window, window.tab("about:blank") as tab:
        await tab.call("Page.enable")
        await tab.call("Page.navigate", url=desk.page_url)
        await tab.wait_for(
            """document.querySelector(".customer .state")?.textContent === "with Ana Lima"
               && document.querySelector(".customer .chat").dataset.live === "true"
               && document.querySelectorAll(".connection[data-state=connected]").length === 2"""
        )
        # A small window shows one side.
        await tab.evaluate("[...document.querySelectorAll('.sides button')].at(-1).click()")
        async with window.tab("about:blank"):
            await tab.wait_for("document.hidden")
            for count in (1, 2):
                desk.api("ana", f"conversations/{thread}/messages/", {"body": "Hello?"})
                await tab.wait_for(f"document.title.startsWith('({count}) ')")
        await window.show(tab)
        await tab.wait_for("document.title.startsWith('Support desk')")


# --- Offline -------------------------------------------------------------------------------------


async def opacity(locator: Locator) -> float:
    return float(await locator.evaluate("element => getComputedStyle(element).opacity"))


async def test_without_a_connection_what_is_stale_is_dimmed_under_a_banner_that_goes_when_it_is_back(
    screen: Screen, desk: Desk
):
    await screen.page.emulate_media(reduced_motion="reduce")
    await screen.chat()
    stale = [screen.attendant.pane.locator(".side"), screen.attendant.log, screen.customer.log]
    assert [await opacity(each) for each in stale] == [1, 1, 1]
    desk.sockets.stop(SIGKILL)
    for side in (screen.attendant, screen.customer):
        await expect(side.outage).to_contain_text("You are offline.")
        await expect(side.outage).to_contain_text(re.compile(r"Next attempt in \d+ s"))
    assert [await opacity(each) < 1 for each in stale] == [True, True, True]
    await expect(screen.attendant.button("Away")).to_be_disabled()

    desk.sockets = desk.start_sockets()
    for side in (screen.attendant, screen.customer):
        await side.is_connected()
        await expect(side.outage).to_have_count(0)
    assert [await opacity(each) for each in stale] == [1, 1, 1]


async def test_message_that_the_network_refused_stays_to_be_sent_and_its_error_goes_with_the_outage(
    screen: Screen,
):
    await screen.chat()
    await screen.page.context.set_offline(True)
    await expect(screen.attendant.outage).to_be_visible()
    await screen.attendant.write("Are you there?")
    await expect(screen.attendant.problem).to_contain_text("The server cannot be reached.")
    await expect(screen.attendant.draft).to_have_value("Are you there?")

    await screen.page.context.set_offline(False)
    await screen.attendant.is_connected()
    await expect(screen.attendant.outage).to_have_count(0)
    await expect(screen.attendant.problem).to_be_hidden()
    await screen.attendant.button("Send").click()
    await screen.customer.reads("Are you there?")


async def test_customer_whom_an_operator_disconnected_is_told_and_may_connect_again(
    screen: Screen, desk: Desk
):
    user_id = desk.api("carla", "conversations/", {"topic": "My invoice"})["customer"]["user_id"]
    desk.add("user:disconnect", {"user_id": user_id, "namespace": "portal"})
    await expect(screen.customer.outage).to_contain_text("No connection: disconnected by an operator.")
    await expect(screen.customer.button("Connect again")).to_be_visible()
    await expect(screen.attendant.outage).to_have_count(0)


# --- The start -----------------------------------------------------------------------------------


async def test_page_shows_that_it_loads_while_it_signs_in_and_never_an_empty_pane(
    desk: Desk, browser: Browser
):
    page = await browser.new_page()
    may_answer = asyncio.Event()

    async def hold(route: Route) -> None:
        await may_answer.wait()
        await route.continue_()

    await page.route("**/demo/token/", hold)
    screen = Screen(page)
    await page.goto(desk.page_url)
    for side in (screen.attendant, screen.customer):
        await expect(side.pane.get_by_role("status", name="Loading")).to_be_visible()
    may_answer.set()
    for side in (screen.attendant, screen.customer):
        await side.is_connected()
        await expect(side.pane.get_by_role("status", name="Loading")).to_have_count(0)


async def test_page_without_a_script_yet_is_not_blank(desk: Desk, browser: Browser):
    page = await browser.new_page()
    await page.route("**/desk.js", lambda route: route.abort())
    await page.goto(desk.page_url)
    await expect(page.get_by_role("heading", name="Support desk")).to_be_visible()
    await expect(page.get_by_role("status", name="Loading")).to_be_visible()


async def test_queue_is_there_before_the_connection_and_although_the_first_request_fails(
    desk: Desk, browser: Browser
):
    topic = unique("about ")
    desk.api("davi", "conversations/", {"topic": topic})
    page = await browser.new_page()
    await page.route_web_socket(re.compile(f":{desk.port}/"), lambda _: None)  # never ready
    failed: set[str | None] = set()

    async def fail_once(route: Route) -> None:
        who = await route.request.header_value("authorization")
        if who in failed:
            await route.continue_()
        else:
            failed.add(who)
            await route.abort()

    await page.route("**/demo/conversations/", fail_once)
    screen = Screen(page)
    await page.goto(desk.page_url)
    await expect(screen.attendant.problem).to_contain_text("Trying again")
    await expect(screen.attendant.listed("Queue").filter(has_text=topic)).to_be_visible()
    await expect(screen.attendant.problem).to_be_hidden()
    assert len(failed) == 2


# --- How it looks --------------------------------------------------------------------------------

LONG = "Charged twice in November, and the invoice still has the address of our office in another town"
LINES = """element => {
    const style = getComputedStyle(element);
    const height = element.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
    return Math.round(height / parseFloat(style.lineHeight));
}"""
CONTRAST = """element => {
    const channels = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((text) => {
        const value = Number(text) / 255;
        return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    const luminance = (color) => channels(color).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const [a, b] = [
        luminance(getComputedStyle(element).borderTopColor),
        luminance(getComputedStyle(element.parentElement).backgroundColor),
    ];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


async def assert_headers_keep_to_one_line(page: Page) -> None:
    headers = page.locator(".page h1, .page button, .bar button, .title .topic, .title button")
    for header in await headers.all():
        if await header.is_visible():
            assert await header.evaluate(LINES) == 1, await header.inner_text()
    assert not await page.evaluate("document.documentElement.scrollWidth > innerWidth")


async def test_header_and_toast_of_a_long_topic_keep_to_their_place_however_narrow_the_page(screen: Screen):
    await screen.customer.start_chat(LONG)
    toast = screen.attendant.toast("Charged twice")
    for part in (toast, toast.get_by_role("button", name="Dismiss")):
        await expect(part).to_be_visible()
        assert await right_edge(part) <= await right_edge(screen.attendant.pane)
    await screen.attendant.take(LONG)
    for width in (1280, 768, 390):
        await screen.page.set_viewport_size({"width": width, "height": 780})
        await assert_headers_keep_to_one_line(screen.page)
        if width < 900:
            sides = screen.page.get_by_role("navigation", name="Sides")
            for side in ("Customer", "Attendant"):
                await sides.get_by_role("button", name=side).click()
                await assert_headers_keep_to_one_line(screen.page)


async def test_pressed_button_stands_out_from_its_group(screen: Screen):
    page = screen.page
    await page.set_viewport_size({"width": 768, "height": 780})
    pressed = page.locator("[aria-pressed=true]:visible")
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        await expect(pressed).to_have_count(2)
        for button in await pressed.all():
            # The least contrast of what shows a state: WCAG 2.2, 1.4.11.
            assert await button.evaluate(CONTRAST) >= 3, (scheme, await button.inner_text())


async def right_edge(locator: Locator) -> float:
    return float(await locator.evaluate("element => element.getBoundingClientRect().right"))


async def test_log_stays_where_the_user_reads_until_the_user_is_back_at_its_end(screen: Screen):
    await screen.chat()
    for number in range(3):
        await screen.customer.write(f"{number}\n" * 20)
        await screen.attendant.reads(str(number))
    assert await is_at_end(screen.attendant)
    await screen.attendant.log.focus()
    await screen.page.keyboard.press("Home")
    await expect_not_at_end(screen.attendant)
    await screen.customer.write("Hello?")
    await screen.attendant.reads("Hello?")
    assert not await is_at_end(screen.attendant)


async def is_at_end(side: Side) -> bool:
    return bool(await side.log.evaluate("log => log.scrollHeight - log.scrollTop - log.clientHeight < 60"))


async def expect_not_at_end(side: Side) -> None:
    await side.pane.page.wait_for_function("log => log.scrollTop === 0", arg=await side.log.element_handle())
