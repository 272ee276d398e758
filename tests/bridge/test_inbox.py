from __future__ import annotations

import asyncio

from realtime.bridge import inbox as module
from realtime.bridge.inbox import Inbox
from tests.telemetry.test_metrics import Counting

TERM = ("lease", "term")


async def taken(inbox: Inbox, most: int = 10) -> list[bytes]:
    return [raw for raw, _ in await inbox.take(most)]


async def test_what_waits_is_taken_together_and_in_order():
    inbox = Inbox()
    inbox.put([b"1", b"2"], TERM)
    inbox.put([b"3"], TERM)
    assert await taken(inbox) == [b"1", b"2", b"3"]


async def test_no_more_are_taken_than_asked_for():
    inbox = Inbox()
    inbox.put([b"1", b"2", b"3"], TERM)
    assert await taken(inbox, 2) == [b"1", b"2"]
    assert await taken(inbox, 2) == [b"3"]


async def test_taking_waits_for_a_message():
    inbox = Inbox()
    taking = asyncio.create_task(taken(inbox))
    await asyncio.sleep(0)
    inbox.put([b"1"], TERM)
    assert await taking == [b"1"]


async def test_what_does_not_fit_is_dropped_and_counted(monkeypatch, caplog):
    monkeypatch.setattr(module, "INBOX_BYTES", 1000 + 2 * module.MESSAGE_BYTES)
    inbox, counted = Inbox(), Counting()
    inbox.put([b"x" * 600, b"y" * 600, b"z" * 300, b"y" * 600], TERM)
    assert await taken(inbox) == [b"x" * 600, b"z" * 300]
    assert counted("realtime_bus_messages_total", result="dropped") == 2
    assert "dropped" in caplog.text
    inbox.put([b"y" * 600], TERM)
    assert await taken(inbox) == [b"y" * 600]


async def test_not_even_of_empty_messages_any_number_waits(monkeypatch):
    monkeypatch.setattr(module, "INBOX_BYTES", 1000)
    inbox = Inbox()
    inbox.put([b""] * 1000, TERM)
    assert len(await inbox.take(1000)) == 1000 // module.MESSAGE_BYTES
    inbox.put([b"1"], TERM)
    assert await taken(inbox) == [b"1"]
