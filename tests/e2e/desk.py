"""The demo with real processes, and its page in the words of the people in front of it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any, Self

from playwright.async_api import Locator, Page, expect

from tests.e2e.harness import PATIENCE, Process, Stack, free_port, unique


class Desk(Stack):
    """The whole system with the demo's web side."""

    sockets: Process

    def __init__(self, directory: Path, redis_url: str) -> None:
        self.web_port = free_port()
        super().__init__(directory, redis_url, ALLOWED_ORIGINS=self.page_url, WEB_PORT=str(self.web_port))
        self.env["SOCKETS_PORT"] = str(self.port)

    @property
    def page_url(self) -> str:
        return f"http://127.0.0.1:{self.web_port}"

    def api(self, username: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the desk's API: GET, or POST when there is a body."""
        headers = {"Content-Type": "application/json"}
        if path != "token/":
            credentials = {"username": username, "password": "demo"}
            headers["Authorization"] = f"Bearer {self.api(username, 'token/', credentials)['access']}"
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.page_url}/demo/{path}", content, headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return json.load(response)

    def end_chats(self) -> None:
        """Leave nothing to the next test."""
        for customer in ("carla", "davi", "elisa"):
            for chat in self.api(customer, "conversations/")["conversations"]:
                self.api(customer, f"conversations/{chat['thread_id']}/end/", {})


class Side:
    """One of the two panes, in the words of who sits in front of it."""

    def __init__(self, page: Page, name: str) -> None:
        self.pane = page.get_by_role("region", name=name, exact=True)
        self.connection = self.pane.locator(".connection")
        self.log = self.pane.get_by_role("log")
        self.messages = self.log.locator("li:not(.note)")
        self.notes = self.log.locator("li.note")
        self.typing = self.pane.locator(".typing")
        self.draft = self.pane.get_by_role("textbox", name="Message")
        self.chat = self.pane.locator(".chat")
        self.state = self.pane.locator(".chat .state")
        self.outage = self.pane.locator(".outage")
        self.problem = self.pane.get_by_role("alert")

    def button(self, name: str) -> Locator:
        return self.pane.get_by_role("button", name=name, exact=True)

    def listed(self, name: str) -> Locator:
        return self.pane.get_by_role("list", name=name).get_by_role("listitem")

    def toast(self, text: str) -> Locator:
        return self.pane.locator(".toast").filter(has_text=text)

    async def sign_in_as(self, username: str) -> None:
        await self.pane.get_by_label("Signed in as").select_option(username)

    async def is_connected(self) -> None:
        await expect(self.connection).to_have_text("connected")

    async def start_chat(self, topic: str) -> None:
        await self.pane.get_by_label("What is it about?").fill(topic)
        await self.button("Start chat").click()

    async def write(self, text: str) -> None:
        await self.draft.fill(text)
        await self.button("Send").click()

    async def answer(self, question: str, answer: str) -> None:
        """Answer a question that the desk asks."""
        dialog = self.pane.page.get_by_role("dialog", name=question)
        await dialog.get_by_role("button", name=answer, exact=True).click()
        await expect(dialog).to_have_count(0)

    async def end_chat(self) -> None:
        await self.button("End chat").click()
        await self.answer("End this chat?", "End chat")

    async def take(self, topic: str) -> None:
        await self.listed("Queue").filter(has_text=topic).get_by_role("button", name="Take").click()
        await expect(self.state).to_contain_text("with ")

    async def is_live(self) -> None:
        """The page has entered the chat's room: what is sent there from now on, and stored nowhere, reaches it."""
        await expect(self.chat).to_have_attribute("data-live", "true")

    async def reads(self, text: str) -> None:
        await expect(self.messages.last).to_contain_text(text)


class Screen:
    """The page, both sides connected."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.attendant = Side(page, "Attendant")
        self.customer = Side(page, "Customer")
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    async def open(self, url: str) -> Self:
        await self.page.goto(url)
        await self.attendant.is_connected()
        await self.customer.is_connected()
        return self

    async def chat(self) -> None:
        """A chat that was started and taken, with both sides in its room."""
        topic = unique("about ")
        await self.customer.start_chat(topic)
        await self.attendant.take(topic)
        await expect(self.customer.state).to_contain_text("with ")
        for side in (self.attendant, self.customer):
            await side.is_live()
