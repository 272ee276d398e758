"""The demo's desk under hasty hands, slow answers, small windows and other scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Page, Request, Route, expect

from tests.e2e.desk import Desk, Screen, Side
from tests.e2e.harness import eventually, unique
from tests.e2e.test_demo_browser import connections, hand_out_tokens

pytestmark = pytest.mark.needs_browser


def posts(page: Page, path: str) -> list[Request]:
    """Every POST to that path that the page begins from now on."""
    begun: list[Request] = []

    def keep(request: Request) -> None:
        if request.method == "POST" and path in request.url:
            begun.append(request)

    page.on("request", keep)
    return begun


@asynccontextmanager
async def held(page: Page, pattern: str, method: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """The server answers such a request, and the first answer arrives only after the block; `answered` waits for it."""
    may_arrive, answered, arrived = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        if answered.is_set() or route.request.method != method:
            await route.continue_()
            return
        answered.set()
        response = await route.fetch()
        await may_arrive.wait()
        await route.fulfill(response=response)
        arrived.set()

    async def wait() -> None:
        await answered.wait()

    await page.route(pattern, hold)
    yield wait
    may_arrive.set()
    await arrived.wait()


TWICE = "button => { button.click(); button.click(); }"


# --- Hasty hands ---------------------------------------------------------------------------------


async def test_double_click_takes_one_chat_although_the_next_moves_under_the_pointer(
    screen: Screen, desk: Desk
):
    first, second = unique("first "), unique("second ")
    desk.api("davi", "conversations/", {"topic": first})
    desk.api("elisa", "conversations/", {"topic": second})
    queue = screen.attendant.listed("Queue")
    await expect(queue).to_have_count(2)
    where = await queue.first.get_by_role("button", name="Take").bounding_box()
    assert where is not None
    mouse = screen.page.mouse
    await mouse.move(where["x"] + 5, where["y"] + 5)
    await mouse.down(click_count=1)
    await mouse.up(click_count=1)
    await expect(queue).to_have_count(1)
    taken = posts(screen.page, "/take/")
    await mouse.down(click_count=2)
    await mouse.up(click_count=2)
    await screen.attendant.is_live()
    assert taken == []
    await expect(queue).to_contain_text(second)


async def test_button_that_is_pressed_again_before_the_answer_acts_once(screen: Screen):
    page = screen.page
    started, taken = posts(page, "/conversations/"), posts(page, "/take/")
    topic = unique("about ")
    await screen.customer.pane.get_by_label("What is it about?").fill(topic)
    async with held(page, "**/demo/conversations/", "POST") as answered:
        await screen.customer.button("Start chat").evaluate(TWICE)
        await answered()
    await expect(screen.customer.state).to_have_text("waiting for an attendant…")
    take = screen.attendant.listed("Queue").filter(has_text=topic).get_by_role("button", name="Take")
    async with held(page, "**/take/", "POST") as answered:
        await take.evaluate(TWICE)
        await answered()
    await expect(screen.attendant.state).to_have_text("with Carla Reis")
    for side in (screen.attendant, screen.customer):
        await expect(side.problem).to_have_count(0)
    assert [len(taken), len([each for each in started if each.url.endswith("/conversations/")])] == [1, 1]


async def test_messages_arrive_in_the_order_of_their_writing_although_the_first_is_slow(screen: Screen):
    await screen.chat()
    may_go = asyncio.Event()
    written = posts(screen.page, "/messages/")

    async def delay(route: Route) -> None:
        if "one" in (route.request.post_data or ""):
            await may_go.wait()
        await route.continue_()

    await screen.page.route("**/messages/", delay)
    for text in ("one", "two", "three"):
        await screen.customer.draft.fill(text)
        await screen.customer.draft.press("Enter")
    await expect(screen.customer.draft).to_have_value("")
    assert len(written) == 1
    may_go.set()
    await screen.attendant.reads("three")
    for number, text in enumerate(("one", "two", "three"), start=1):
        await expect(screen.attendant.messages.nth(number)).to_contain_text(text)


async def test_messages_that_cannot_be_sent_return_in_front_of_what_was_typed_meanwhile(screen: Screen):
    await screen.chat()
    may_fail = asyncio.Event()

    async def fail(route: Route) -> None:
        await may_fail.wait()
        await route.abort()

    await screen.page.route("**/messages/", fail)
    for text in ("one", "two"):
        await screen.customer.draft.fill(text)
        await screen.customer.draft.press("Enter")
    await screen.customer.draft.fill("three")
    may_fail.set()
    await expect(screen.customer.problem).to_contain_text("The server cannot be reached.")
    await expect(screen.customer.draft).to_have_value("one\ntwo\nthree")


# --- Slow answers --------------------------------------------------------------------------------


async def test_list_that_arrives_late_does_not_remove_a_chat_that_began_meanwhile(screen: Screen, desk: Desk):
    before, topic = unique("before "), unique("about ")
    thread = desk.api("davi", "conversations/", {"topic": before})["thread_id"]
    queue = screen.attendant.listed("Queue")
    await expect(queue.filter(has_text=before)).to_have_count(1)
    async with held(screen.page, "**/demo/conversations/", "GET") as answered:
        desk.api("davi", f"conversations/{thread}/end/", {})
        await answered()
        desk.api("elisa", "conversations/", {"topic": topic})
        await expect(queue.filter(has_text=topic)).to_have_count(1)
    await expect(queue.filter(has_text=before)).to_have_count(0)  # the list has arrived
    await expect(queue.filter(has_text=topic)).to_have_count(1)


async def test_answer_from_before_the_chat_was_accepted_does_not_make_its_customer_wait_again(
    screen: Screen, desk: Desk
):
    topic = unique("about ")

    def is_start(request: Request) -> bool:
        return request.method == "POST" and request.url.endswith("/conversations/")

    async with (
        screen.page.expect_event("requestfinished", is_start),
        held(screen.page, "**/demo/conversations/", "POST") as answered,
    ):
        await screen.customer.start_chat(topic)
        await answered()
        await screen.attendant.take(topic)
        await expect(screen.customer.state).to_have_text("with Ana Lima")
    await screen.attendant.write("Hello!")
    await screen.customer.reads("Hello!")
    await expect(screen.customer.state).to_have_text("with Ana Lima")


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
    await eventually(lambda: len(lost) == 2 and len(opened) >= 4)
    for side in (screen.attendant, screen.customer):
        await side.is_connected()


# --- Small windows -------------------------------------------------------------------------------


async def expect_at_end(side: Side) -> None:
    log = await side.log.element_handle()
    await side.pane.page.wait_for_function(
        "log => log.clientHeight > 0 && log.scrollHeight - log.scrollTop - log.clientHeight < 2", arg=log
    )


async def test_log_stays_at_its_end_when_the_window_the_field_or_the_side_changes(screen: Screen):
    await screen.chat()
    for number in range(12):
        await screen.attendant.write(f"{number} " + "words that take more lines in a smaller window " * 3)
        await screen.customer.reads(str(number))
    await expect_at_end(screen.customer)
    await screen.attendant.draft.fill("\n" * 6)
    await expect_at_end(screen.attendant)
    await screen.page.set_viewport_size({"width": 390, "height": 700})
    await expect_at_end(screen.attendant)
    await screen.attendant.write("And this while the customer's side is hidden.")
    sides = screen.page.get_by_role("navigation", name="Sides")
    await sides.get_by_role("button", name="Customer").click()
    await screen.customer.reads("And this")
    await expect_at_end(screen.customer)


async def test_header_fits_a_small_phone_although_both_sides_have_unread_messages(screen: Screen):
    await screen.chat()
    await screen.page.set_viewport_size({"width": 360, "height": 640})
    await screen.attendant.write("Hello!")
    sides = screen.page.get_by_role("navigation", name="Sides")
    await expect(sides.get_by_role("button", name="Customer 1")).to_be_visible()
    for side in await sides.get_by_role("button").all():
        assert await side.evaluate("side => side.getBoundingClientRect().right <= innerWidth")
    assert await screen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await expect(screen.page.get_by_role("heading", name="Support desk")).to_have_count(1)


# --- The keyboard --------------------------------------------------------------------------------


async def test_focus_is_never_lost_with_what_had_it(screen: Screen):
    page, topic = screen.page, unique("about ")
    await screen.customer.pane.get_by_label("What is it about?").fill(topic)
    await page.keyboard.press("Enter")
    await expect(screen.customer.draft).to_be_focused()
    await screen.attendant.take(topic)
    await screen.attendant.button("End chat").press("Enter")
    await page.get_by_role("dialog").get_by_role("button", name="End chat").press("Enter")
    await expect(screen.attendant.state).to_have_text("ended")
    await expect(screen.attendant.log).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(screen.attendant.button("Close")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(screen.attendant.pane.locator(".side")).to_be_focused()


# --- Other scripts -------------------------------------------------------------------------------

BEGINS_RIGHT_OF_ITS_END = """entry => {
    const text = entry.lastChild;
    const at = (from, to) => {
        const range = document.createRange();
        range.setStart(text, from);
        range.setEnd(text, to);
        return range.getBoundingClientRect().left;
    };
    return at(0, 1) > at(text.length - 1, text.length);
}"""


async def test_message_in_hebrew_or_arabic_is_read_from_the_right(screen: Screen):
    await screen.chat()
    for text, is_from_right in (("שלום, world (123)!", True), ("سؤال (hi).", True), ("Hi, שלום!", False)):
        await screen.customer.write(text)
        await screen.attendant.reads(text)
        assert await screen.attendant.messages.last.evaluate(BEGINS_RIGHT_OF_ITS_END) is is_from_right


async def test_initials_are_whole_characters(desk: Desk, browser: Browser):
    topic = unique("about ")
    desk.api("davi", "conversations/", {"topic": topic})
    page = await browser.new_page()

    async def rename(route: Route) -> None:
        response = await route.fetch()
        text = (await response.text()).replace("Davi Alves", " 😀 𝔇avi Alves")
        await route.fulfill(response=response, body=text)

    await page.route("**/demo/conversations/", rename)
    screen = await Screen(page).open(desk.page_url)
    waiting = screen.attendant.listed("Queue").filter(has_text=topic)
    await expect(waiting.locator(".avatar")).to_have_text("😀𝔇")
    await page.unroute_all(behavior="wait")
