"""The demo's page in a real browser, against real processes: what a newcomer sees first."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from signal import SIGKILL

import pytest
from playwright.async_api import Browser, Page, Route, WebSocket, expect

from realtime.auth.issuing import issue
from realtime.auth.verification import verify
from tests.e2e.desk import Desk, Screen
from tests.e2e.harness import eventually, unique

pytestmark = pytest.mark.needs_browser


async def test_chat_goes_from_the_queue_to_its_end(screen: Screen):
    topic = unique("invoice ")
    await screen.customer.start_chat(topic)
    await expect(screen.customer.state).to_have_text("waiting for an attendant…")
    waiting = screen.attendant.listed("Queue").filter(has_text=topic)
    await expect(waiting).to_contain_text("Carla Reis")

    await waiting.get_by_role("button", name="Take").click()
    await expect(waiting).to_have_count(0)
    await expect(screen.customer.state).to_have_text("with Ana Lima")
    await expect(screen.attendant.state).to_have_text("with Carla Reis")

    await screen.attendant.end_chat()
    for side in (screen.attendant, screen.customer):
        await expect(side.state).to_have_text("ended")
    await expect(screen.customer.button("Start chat")).to_be_visible()


async def test_waiting_chat_is_gone_from_every_queue_once_its_customer_gives_up(screen: Screen):
    await screen.customer.start_chat("never mind")
    waiting = screen.attendant.listed("Queue").filter(has_text="never mind")
    await expect(waiting).to_have_count(1)
    await screen.customer.button("Cancel").click()
    await screen.customer.answer("Cancel this chat?", "Cancel chat")
    await expect(waiting).to_have_count(0)


async def test_messages_go_both_ways_and_are_shown_once(screen: Screen):
    await screen.chat()
    await screen.customer.write("Hello?")
    await screen.attendant.reads("Hello?")
    await screen.attendant.write("Hello, Carla.")
    await screen.customer.reads("Hello, Carla.")
    for side in (screen.attendant, screen.customer):
        await expect(side.messages).to_have_count(3)


async def test_each_sees_the_other_typing_until_they_stop(screen: Screen):
    await screen.chat()
    for writer, reader, name in (
        (screen.customer, screen.attendant, "Carla Reis"),
        (screen.attendant, screen.customer, "Ana Lima"),
    ):
        await writer.draft.press_sequentially("Well")
        await expect(reader.typing).to_have_text(f"{name} is typing…")
        await expect(writer.typing).to_have_text("")
        await expect(reader.typing).to_have_text("")  # 5 s without a key


async def test_message_ends_the_typing_that_came_before_it(screen: Screen):
    await screen.chat()
    await screen.customer.draft.press_sequentially("Well")
    await expect(screen.attendant.typing).to_have_text("Carla Reis is typing…")
    await screen.customer.button("Send").click()
    await screen.attendant.reads("Well")
    await expect(screen.attendant.typing).to_have_text("", timeout=4_000)  # sooner than by silence


async def test_attendant_who_is_away_is_seen_as_away_by_the_team(
    screen: Screen, desk: Desk, browser: Browser
):
    other = Screen(await browser.new_page())
    await other.open(desk.page_url)
    await other.attendant.sign_in_as("bia")
    await other.attendant.is_connected()
    bia = screen.attendant.listed("Team").filter(has_text="Bia Souza")
    await expect(bia).to_contain_text("online")
    await other.attendant.button("Away").click()
    await expect(bia).to_contain_text("away")
    await expect(other.attendant.button("Away")).to_have_attribute("aria-pressed", "true")
    await other.attendant.button("Online").click()
    await expect(bia).to_contain_text("online")
    await other.attendant.sign_in_as("ana")  # signs Bia out, without grace period
    await expect(bia).to_have_count(0)


async def test_message_written_while_the_sockets_were_down_is_there_after_the_reconnect(
    screen: Screen, desk: Desk
):
    await screen.chat()
    desk.sockets.stop(SIGKILL)
    for side in (screen.attendant, screen.customer):
        await expect(side.connection).not_to_have_text("connected")
    await screen.attendant.write("Are you still there?")
    await screen.attendant.reads("Are you still there?")
    await expect(screen.customer.messages).to_have_count(1)

    desk.sockets = desk.start_sockets()
    for side in (screen.attendant, screen.customer):
        await side.is_connected()
    await screen.customer.reads("Are you still there?")
    await screen.customer.write("I am.")
    await screen.attendant.reads("I am.")
    await expect(screen.attendant.messages).to_have_count(3)


def connections(page: Page) -> list[WebSocket]:
    """Every connection that the page opens from now on."""
    opened: list[WebSocket] = []

    def keep(socket: WebSocket) -> None:
        opened.append(socket)

    page.on("websocket", keep)
    return opened


def frames_sent(page: Page) -> list[str]:
    """Every frame that the page sends from now on."""
    sent: list[str] = []

    def keep(frame: str | bytes) -> None:
        sent.append(str(frame))

    page.on("websocket", lambda socket: socket.on("framesent", keep))
    return sent


async def hand_out_tokens(page: Page, ttl: float) -> None:
    """Let the page sign in with access tokens of another life."""

    async def sign_in(route: Route) -> None:
        response = await route.fetch()
        tokens = await response.json()
        who = verify(tokens["access"])
        tokens["access"] = issue(
            user_id=who.user_id, role=who.role, name=who.name, groups=who.groups, threads=who.threads, ttl=ttl
        )
        await route.fulfill(response=response, json=tokens)

    await page.route("**/demo/token/", sign_in)


async def test_expiring_token_is_renewed_on_the_same_connection(desk: Desk, browser: Browser):
    page = await browser.new_page()
    opened, sent = connections(page), frames_sent(page)
    await hand_out_tokens(page, ttl=8)
    await Screen(page).open(desk.page_url)
    first_have_ended = time.time() + 8
    await eventually(lambda: sum("auth:refresh" in frame for frame in sent) == 2)
    await eventually(lambda: time.time() > first_have_ended)
    assert len(opened) == 2
    assert not any(socket.is_closed() for socket in opened)


async def test_connection_that_ended_with_its_token_comes_back_with_a_fresh_one(desk: Desk, browser: Browser):
    page = await browser.new_page()
    opened = connections(page)
    await hand_out_tokens(page, ttl=3)
    refused: set[str | None] = set()

    async def refuse_once(route: Route) -> None:
        token = route.request.post_data
        if token in refused:
            await route.continue_()
        else:
            refused.add(token)
            await route.fulfill(status=503, json={})

    await page.route("**/demo/token/refresh/", refuse_once)
    screen = await Screen(page).open(desk.page_url)
    await eventually(lambda: len(opened) == 4)
    for side in (screen.attendant, screen.customer):
        await side.is_connected()
    assert [socket.is_closed() for socket in opened] == [True, True, False, False]


async def test_handshake_refused_for_an_expired_token_is_tried_again_with_a_fresh_one(
    desk: Desk, browser: Browser
):
    page = await browser.new_page()
    await hand_out_tokens(page, ttl=-10)
    await Screen(page).open(desk.page_url)


async def test_customer_whom_an_operator_disconnected_stays_away(screen: Screen, desk: Desk):
    await screen.chat()
    (chat,) = desk.api("carla", "conversations/")["conversations"]
    desk.add("user:disconnect", {"user_id": chat["customer"]["user_id"], "namespace": "portal"})
    await expect(screen.customer.connection).to_have_text("disconnected by an operator")
    await screen.attendant.is_connected()


async def test_what_a_user_writes_is_text_and_never_markup(screen: Screen):
    markup = """<img src=x onerror="document.title='owned'"><b>bold</b>"""
    await screen.customer.start_chat(markup)
    await screen.attendant.take(markup)
    await screen.customer.write(markup)
    await screen.attendant.reads(markup)
    assert await screen.page.locator("img, .log b, .queue b").count() == 0
    assert "owned" not in await screen.page.title()


async def another_customer(screen: Screen, username: str, topic: str) -> None:
    """Another customer starts a chat, which the attendant takes."""
    await screen.customer.sign_in_as(username)
    await screen.customer.is_connected()
    await screen.customer.start_chat(topic)
    await screen.attendant.take(topic)
    await expect(screen.customer.state).to_contain_text("with ")


async def test_message_in_a_chat_that_is_not_shown_is_marked_and_toasted_until_it_is_read(screen: Screen):
    first = unique("first ")
    await screen.customer.start_chat(first)
    await screen.attendant.take(first)
    await another_customer(screen, "davi", unique("second "))
    await screen.customer.sign_in_as("carla")
    await screen.customer.is_connected()
    await expect(screen.customer.state).to_contain_text("with ")
    await screen.customer.write("Are you there?")

    chat = screen.attendant.listed("My chats").filter(has_text=first)
    await expect(chat.get_by_label("1 unread")).to_be_visible()
    await expect(screen.page).to_have_title("(1) Support desk · realtime-sockets")
    await screen.attendant.toast("Are you there?").get_by_role("button", name="Show").click()
    await screen.attendant.reads("Are you there?")
    await expect(chat.get_by_label("1 unread")).to_have_count(0)
    await expect(screen.page).to_have_title("Support desk · realtime-sockets")


async def test_toast_of_a_chat_goes_when_the_chat_is_taken(screen: Screen):
    topic = unique("about ")
    await screen.customer.start_chat(topic)
    await screen.attendant.toast(topic).get_by_role("button", name="Take it").click()
    await expect(screen.attendant.state).to_have_text("with Carla Reis")
    await expect(screen.attendant.toast(topic)).to_have_count(0)


async def test_chat_is_led_with_the_keyboard_alone(screen: Screen):
    topic, page = unique("keys "), screen.page
    await screen.customer.pane.get_by_label("What is it about?").focus()
    await page.keyboard.type(topic)
    await page.keyboard.press("Enter")
    await screen.attendant.listed("Queue").filter(has_text=topic).get_by_role("button", name="Take").focus()
    await page.keyboard.press("Enter")
    await expect(screen.attendant.draft).to_be_focused()
    await page.keyboard.type("Good morning!")
    await page.keyboard.press("Enter")
    await screen.customer.reads("Good morning!")


async def test_narrow_screen_shows_one_side_at_a_time_and_marks_the_other(screen: Screen):
    await screen.chat()
    await screen.page.set_viewport_size({"width": 390, "height": 780})
    await expect(screen.customer.pane).to_be_hidden()
    await screen.attendant.write("Hello!")
    sides = screen.page.get_by_role("navigation", name="Sides")
    await expect(sides.get_by_role("button", name="Customer 1")).to_be_visible()
    await sides.get_by_role("button", name="Customer").click()
    await screen.customer.reads("Hello!")
    await expect(sides.get_by_role("button", name="Customer", exact=True)).to_be_visible()
    wider = await screen.page.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert not wider


async def test_pictures_for_the_readme(screen: Screen):
    """A conversation as it looks, in light and dark; written to docs/ only where `SCREENSHOTS=docs` says so."""
    page = screen.page
    await page.set_viewport_size({"width": 1280, "height": 760})
    await screen.customer.start_chat("Charged twice in November")
    await screen.attendant.button("Take").click()
    await expect(screen.attendant.draft).to_be_enabled()
    for side, text in (
        (screen.customer, "Hello! I was charged twice for November."),
        (screen.attendant, "Hi Carla, let me look at it."),
        (screen.attendant, "You are right, that was our mistake. The second payment is on its way back."),
        (screen.customer, "That was quick, thank you!"),
    ):
        await side.write(text)
        for reader in (screen.attendant, screen.customer):
            await reader.reads(text)
    await screen.customer.sign_in_as("davi")
    await screen.customer.is_connected()
    await screen.customer.start_chat("Where is my parcel?")
    await expect(screen.attendant.listed("Queue")).to_have_count(1)
    await screen.customer.sign_in_as("carla")
    await screen.customer.reads("That was quick, thank you!")
    await screen.customer.draft.press_sequentially("One more thing")
    await expect(screen.attendant.typing).to_have_text("Carla Reis is typing…")
    await expect(screen.attendant.listed("My chats")).to_have_count(1)
    await screen.attendant.toast("parcel").get_by_role("button", name="Dismiss").click()
    folder = Path(os.environ.get("SCREENSHOTS") or tempfile.mkdtemp())
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        picture = folder / f"desk-{scheme}.png"
        await page.screenshot(path=picture)
        assert picture.stat().st_size > 20_000
