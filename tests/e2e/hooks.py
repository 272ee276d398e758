"""The page of the React hooks, and a tab with it."""

from __future__ import annotations

from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page, WebSocket, expect

from tests.e2e.harness import eventually
from tests.e2e.site import Site, opened

PAGE = """<!doctype html><title>hooks</title><link rel="icon" href="data:,"><div id="root"></div>
<script type="module" src="client.js"></script>"""


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
