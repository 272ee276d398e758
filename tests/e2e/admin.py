"""A system with an admin, and operators who are signed in."""

from __future__ import annotations

import asyncio
import contextlib
import http.cookiejar
import re
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

from playwright.async_api import Browser, Page

from tests.e2e.harness import PATIENCE, Process, Stack, free_port

QUICKLY = """
    window.waits = [];
    const wait = window.setTimeout;
    window.setTimeout = (act, milliseconds) => {
        waits.push(milliseconds);
        return wait(act, milliseconds / HURRY);
    };
"""
"""Notes how long a page waits, and lets it wait for a part of that."""


class Admin:
    """An operator's browser without eyes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._cookies))

    def sign_in(self) -> Self:
        self._get("login/")
        self._post("login/", {"username": "admin", "password": "a long one", "next": "/admin/"})
        return self

    async def get(self, path: str, **query: str) -> str:
        return await asyncio.to_thread(self._get, f"{path}?{urllib.parse.urlencode(query)}")

    async def do(self, path: str, **data: str) -> str:
        """Confirm an action."""
        return await asyncio.to_thread(self._post, path, {**data, "confirmed": "yes"})

    def _get(self, path: str) -> str:
        with self._opener.open(f"{self.url}/admin/{path}", timeout=PATIENCE) as response:
            return response.read().decode()

    def _post(self, path: str, data: dict[str, str]) -> str:
        token = next(cookie.value for cookie in self._cookies if cookie.name == "csrftoken")
        content = urllib.parse.urlencode({**data, "csrfmiddlewaretoken": token or ""}).encode()
        with self._opener.open(f"{self.url}/admin/{path}", content, timeout=PATIENCE) as response:
            return response.read().decode()

    async def find(self, **query: str) -> list[str]:
        """The connections on a page of the live view."""
        return re.findall(r"/live/connections/([0-9a-f]{32})/", await self.get("presence/live/", **query))

    async def instances(self) -> dict[int, str]:
        """The processes that answered: process id and id."""
        page = await self.get("presence/live/instances/")
        return {int(pid): id for id, pid in re.findall(r'\?instance=([0-9a-f]{32})">[^<]*:(\d+)<', page)}

    async def silent(self) -> list[int]:
        """The processes that did not: process ids."""
        page = await self.get("presence/live/instances/")
        return [int(pid) for pid in re.findall(r"<li><strong>[^<]*:(\d+)</strong>", page)]


class System(Stack):
    """Two socket servers, a bridge, and the web side with an admin signed in."""

    def __init__(self, directory: Path, redis_url: str, **env: str) -> None:
        self.web_port, self.other_port = free_port(), free_port()
        super().__init__(directory, redis_url, WEB_PORT=str(self.web_port), REALTIME_NODE_LEASE="1.5", **env)

    def open(self) -> Self:
        operator = {"USERNAME": "admin", "EMAIL": "a@example.com", "PASSWORD": "a long one"}
        self.env |= {f"DJANGO_SUPERUSER_{name}": value for name, value in operator.items()}
        for command in (["migrate", "--verbosity", "0"], ["createsuperuser", "--noinput"]):
            self.manage(*command)
        self.start("runbridge")
        self.one = self.start_sockets()
        self.two = self.start_sockets(self.other_port)
        self.web = self.start("runweb")
        self.admin = Admin(f"http://127.0.0.1:{self.web_port}").sign_in()
        return self

    one: Process
    two: Process
    web: Process
    admin: Admin


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
