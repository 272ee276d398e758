"""The worked example of docs/adding-an-event.md, run as it stands there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.blocks import titled
from tests.e2e.harness import ROOT, Stack, unique

PAGE = titled("adding-an-event.md")


@pytest.fixture(scope="module")
def product(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A system whose product brings the module of the page."""
    directory = tmp_path_factory.mktemp("product")
    module = directory / "support" / "realtime_events.py"
    module.parent.mkdir()
    (module.parent / "__init__.py").touch()
    module.write_text(PAGE["support/realtime_events.py"] + PAGE["a bus handler"])
    with Stack(
        directory,
        redis_url,
        REALTIME_EVENTS="support.realtime_events",
        PYTHONPATH=os.pathsep.join([str(directory), str(ROOT)]),
    ) as stack:
        yield stack.start_all()


async def test_published_event_reaches_the_team_and_no_customer(product: Stack):
    async with product.client("hub") as attendant, product.client("portal") as customer:
        script = f"import django; django.setup()\n{PAGE['publish']}"
        done = product.run("-c", script, DJANGO_SETTINGS_MODULE="realtime.settings.sockets")
        assert done.returncode == 0, done.stderr
        frame = await attendant.expect("ticket:escalated")
        assert frame["data"] == {"ticket_id": "42", "severity": "high"}
        assert frame["room"] == "presence:attendants"
        assert '"ticket": "42"' in product.logs  # its bus handler has run before
        product.add("ticket:escalated", {"ticket_id": 43}, rooms=[f"user:{customer.user_id}"])
        await customer.nothing("ticket:escalated")


async def test_client_event_runs_its_handler(product: Stack):
    thread = unique("th")
    async with product.client("hub", name="Ana") as ana, product.client("hub") as bia:
        assert (await ana.refused("ticket:watch", {"thread_id": thread}))["code"] == "not_in_room"
        for client in (ana, bia):
            await client.call("join:thread", {"thread_id": thread})
        assert await ana.call("ticket:watch", {"thread_id": thread, "minutes": 5}) == {"watching": True}
        assert (await bia.expect("ticket:watched"))["data"] == {
            "thread_id": thread,
            "user_id": ana.user_id,
            "namespace": "hub",
            "name": "Ana",
            "minutes": 5,
        }
        bad = await ana.refused("ticket:watch", {"thread_id": thread, "minutes": "five"})
        assert (bad["code"], "minutes" in bad["message"]) == ("invalid_payload", True)


async def test_client_event_of_the_team_is_forbidden_to_customers(product: Stack):
    async with product.client("portal") as customer:
        assert (await customer.refused("ticket:watch", {"thread_id": "1"}))["code"] == "forbidden"


def test_example_is_documented_like_every_other_event(product: Stack):
    page = product.manage("documentevents")
    assert "| `ticket:escalated` | ✓ | – | `presence:{group}` |" in page
    assert "Show colleagues that this user has the ticket open." in page


def test_example_has_types_for_the_browser(product: Stack):
    found = product.manage("generateclient")
    assert '"ticket:watch": { thread_id: string | number; minutes?: number };' in found
    assert '"ticket:watch": { watching: boolean };' in found


def test_example_is_part_of_the_asyncapi_document(product: Stack):
    found = json.loads(product.manage("generateasyncapi"))
    message = found["components"]["messages"]["bus.ticket.escalated"]
    assert (
        message["summary"]
        == "A ticket was escalated to a senior attendant. Default rooms: `presence:{group}`."
    )
    ours = {"client.ticket.watch", "ack.ticket.watch", "server.ticket.escalated", "server.ticket.watched"}
    assert ours <= found["channels"]["hub"]["messages"].keys()
    assert not ours & found["channels"]["portal"]["messages"].keys()
