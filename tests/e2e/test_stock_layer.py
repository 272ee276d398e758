"""A team that keeps channels-redis' own layer keeps a working system: at most once, and told so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.harness import Stack, unique


@pytest.fixture(scope="module")
def stock(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stock"), redis_url) as stack:
        stack.env["DJANGO_SETTINGS_MODULE"] = "tests.settings_stock_layer"
        yield stack.start_all()


async def test_messages_typing_and_presence_work(stock: Stack):
    thread = unique("th")
    async with stock.client("hub") as attendant, stock.client("portal", threads=[thread]) as customer:
        for client in (attendant, customer):
            await client.call("join:thread", {"thread_id": thread})
        await attendant.expect("attendant:online", user_id=attendant.user_id)
        for n in range(20):
            stock.add("thread:message", {"thread_id": thread, "message_id": n})
        for client in (attendant, customer):
            for n in range(20):
                frame = await client.expect("thread:message")
                assert (frame["data"]["message_id"], frame["room"]) == (str(n), f"thread:{thread}")
        await customer.call("typing:start", {"thread_id": thread})
        assert (await attendant.expect("thread:typing"))["data"]["typing"] is True


async def test_nothing_is_recovered_and_that_is_said(stock: Stack):
    thread = unique("th")
    async with stock.client("hub") as client:
        offset = (await client.call("join:thread", {"thread_id": thread}))["offset"]
        answer = await client.call("resume", {"rooms": {f"thread:{thread}": offset}})
        assert answer["rooms"][f"thread:{thread}"]["recovered"] is False
        stock.add("thread:message", {"thread_id": thread, "message_id": "after"})
        await client.expect("thread:message", message_id="after")


async def test_rooms_asked_to_keep_still_for_a_resume_have_no_gap(stock: Stack):
    async with stock.client("hub", query="resume=1") as client:
        await client.call("resume", {"rooms": {}})
        await client.nothing("room:gap")


def test_a_system_check_says_so(stock: Stack):
    assert "realtime.W002" in stock.logs
