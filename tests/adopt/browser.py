"""A window of a browser, whose user signs in when a page asks for it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from playwright.sync_api import Error, Response, sync_playwright

from tests.adopt.workshop import Stopped
from tests.asking import PATIENCE
from tests.e2e.browser import ARGUMENTS, CHROMIUM

USER = ("ana", "a long password")
"""A user of tests/adopt/project.md, with the password."""
SHOWN = 2000
"""Characters of a page that a message shows."""


class Window:
    """A headless Chromium with one page, opened at the first use."""

    def __init__(self) -> None:
        if not CHROMIUM.exists():
            raise Stopped(f"{CHROMIUM} is missing: apt-get install chromium")
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        self._page = self._browser.new_page()
        self._page.set_default_timeout(PATIENCE * 1000)
        self._log: list[str] = []
        self._page.on("console", lambda message: self._log.append(message.text))
        self._page.on("response", self._note)

    def _note(self, response: Response) -> None:
        if not response.ok:
            self._log.append(f"{response.status} {response.url}")

    def see(self, address: str, texts: Sequence[str]) -> None:
        """Open the page unless it is open, and wait for the texts. Raises `Stopped` with what is there instead."""
        try:
            if self._page.url != address:
                self._open(address)
            for text in texts:
                self._page.get_by_text(text, exact=True).first.wait_for()
        except Error as error:
            raise Stopped(f"{error.message}\n{self._shown()}") from error

    def _shown(self) -> str:
        body = self._page.locator("body").inner_text()[-SHOWN:]
        return f"{self._page.url} shows:\n{body}\nIts console and failed requests: {self._log[-10:]}"

    def _open(self, address: str) -> None:
        """Open a page, again and again while a server that has seen new code reloads; sign in if that is asked for."""
        deadline = time.monotonic() + PATIENCE
        while not self._answers(address):
            if time.monotonic() > deadline:
                raise Stopped(f"there is no page {address}\n{self._shown()}")
            time.sleep(0.5)
        if self._page.url != address:
            name, password = USER
            self._page.fill("[name=username]", name)
            self._page.fill("[name=password]", password)
            self._page.press("[name=password]", "Enter")
            self._page.wait_for_url(address)

    def _answers(self, address: str) -> bool:
        try:
            response = self._page.goto(address)
        except Error:
            return False
        return response is not None and response.ok

    def close(self) -> None:
        self._browser.close()
        self._playwright.stop()
