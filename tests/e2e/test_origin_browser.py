"""The Origin of a page in a real browser, at the very address of the server: it has to be listed all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import Stack

if TYPE_CHECKING:
    from playwright.async_api import Browser

pytestmark = pytest.mark.needs_browser

CONNECT = """
([url, token]) => new Promise((resolve) => {
  const socket = new WebSocket(url, ["realtime.v1", "bearer." + token]);
  socket.onmessage = ({ data }) => resolve(JSON.parse(data).event);
  socket.onclose = ({ code }) => resolve(code);
})
"""

ASK = """
async ([path, token]) => {
  const answer = await fetch(path, { headers: { Authorization: "Bearer " + token } });
  return [answer.status, answer.status === 204 ? "" : (await answer.json()).error.code];
}
"""


async def test_page_at_the_address_of_the_server_does_not_pass_for_an_app(
    uvicorn_stack: Stack, browser: Browser
):
    page = await browser.new_page()
    await page.goto(f"http://127.0.0.1:{uvicorn_stack.port}/healthz")
    assert await page.evaluate(CONNECT, [uvicorn_stack.url("hub"), uvicorn_stack.token()]) == 1006


async def test_page_at_the_address_of_the_server_connects_when_it_is_listed(
    redis_url: str, tmp_path, browser: Browser
):
    with Stack(tmp_path, redis_url) as stack:
        stack.env["ALLOWED_ORIGINS"] = f"http://127.0.0.1:{stack.port}"
        stack.start_sockets()
        page = await browser.new_page()
        await page.goto(f"http://127.0.0.1:{stack.port}/healthz")
        assert await page.evaluate(CONNECT, [stack.url("hub"), stack.token()]) == "connection:ready"
        assert await page.evaluate(ASK, ["/hub/", stack.token()]) == [204, ""]


async def test_verdict_for_a_page_at_the_address_of_the_server_is_that_of_the_handshake(
    uvicorn_stack: Stack, browser: Browser
):
    """A browser sends no Origin with a GET to its page's own address."""
    page = await browser.new_page()
    await page.goto(f"http://127.0.0.1:{uvicorn_stack.port}/healthz")
    asked = await page.evaluate(ASK, ["/hub/", uvicorn_stack.token()])
    assert asked == [403, "forbidden_origin"]
