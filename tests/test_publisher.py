from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import json
import socket
import time
from doctest import DocTestParser
from typing import Any
from uuid import UUID

import pytest
import redis
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group, User
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import transaction
from django.utils.connection import ConnectionDoesNotExist
from django.utils.html import format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy

from presence import store
from realtime import publisher
from realtime.publisher import InvalidMessage, aonline, apublish, online, publish
from realtime.redis.bounded import now
from realtime.redis.client import key, sync_client
from tests.inprocess import HUB, bridging, connected

pytestmark = pytest.mark.usefixtures("realtime_redis", "without_outbox")
MESSAGE = {"thread_id": 42, "message_id": 7}


def published() -> list[dict[str, Any]]:
    return [json.loads(fields[b"message"]) for _, fields in sync_client().xrange(key("stream"))]


def test_message_is_in_the_durable_stream_with_an_id_of_its_own():
    """So a write that is retried stays one message."""
    for _ in range(2):
        publish("thread:message", {**MESSAGE, "body": "hi"})
    one, two = published()
    assert one == {"event": "thread:message", "data": {**MESSAGE, "body": "hi"}, "id": one["id"]}
    assert one["id"] != two["id"]
    assert 1 <= len(one["id"]) <= 128


def test_options_are_those_of_the_bus():
    publish(
        "thread:message",
        MESSAGE,
        rooms=("user:1",),
        namespaces={"hub"},
        id="order-7",
        exclude="c1",
    )
    (message,) = published()
    assert message == {
        "event": "thread:message",
        "data": MESSAGE,
        "rooms": ["user:1"],
        "namespaces": ["hub"],
        "id": "order-7",
        "except": "c1",
    }


@pytest.mark.parametrize(
    ("event", "data", "options", "code"),
    [
        ("thread:massage", MESSAGE, {}, "unknown_event"),
        ("thread:message", {"thread_id": 42}, {}, "invalid_payload"),
        ("thread:message", {**MESSAGE, "body": "x" * 300_000}, {}, "too_large"),
        ("thread:message", MESSAGE, {"rooms": ["lobby"]}, "invalid_message"),
        ("thread:message", MESSAGE, {"id": object()}, "invalid_message"),
        ("thread:message", [], {}, "invalid_payload"),
    ],
)
def test_what_is_not_valid_is_refused_at_once(event, data, options, code):
    with pytest.raises(InvalidMessage) as caught:
        publish(event, data, **options)
    assert caught.value.code == code
    assert published() == []


def test_value_that_json_has_no_form_for_is_refused_and_its_place_is_named():
    with pytest.raises(InvalidMessage) as caught:
        publish("thread:message", {**MESSAGE, "items": [1, 2, {"owner": User()}]})
    assert caught.value.code == "invalid_message"
    place = "invalid_message: thread:message: data.items[2].owner: JSON has no form for "
    assert str(caught.value).startswith(place)
    assert published() == []


def test_text_of_templates_translations_and_half_an_emoji_can_be_published():
    publish(
        "thread:message",
        {
            **MESSAGE,
            "body": format_html("<b>{}</b>", "&"),
            "label": gettext_lazy("Open"),
            mark_safe("key"): "\ud83d",
        },
        id=UUID(int=7),
        rooms=[mark_safe("user:1")],
    )
    (message,) = published()
    assert message["data"] == {**MESSAGE, "body": "<b>&amp;</b>", "label": "Open", "key": "\ufffd"}
    assert (message["id"], message["rooms"]) == (str(UUID(int=7)), ["user:1"])


@pytest.mark.django_db(transaction=True)
class TestWithADatabase:
    def test_rolled_back_message_is_not_published(self):
        with transaction.atomic():
            publish("thread:message", MESSAGE)
            transaction.set_rollback(True)
        assert published() == []

    @pytest.mark.parametrize("robust", [True, False])
    def test_redis_that_is_down_is_raised_or_if_the_call_is_robust_logged(
        self, robust: bool, settings, caplog
    ):
        settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "redis://127.0.0.1:1/0"}
        called: list[int] = []

        def commit() -> None:
            with transaction.atomic():
                publish("thread:message", MESSAGE, robust=robust)
                transaction.on_commit(lambda: called.append(1))

        with contextlib.nullcontext() if robust else pytest.raises(redis.RedisError):
            commit()
        assert called == ([1] if robust else []), "other callbacks"
        assert ("not published" in caplog.messages) is robust

    def test_message_that_is_not_valid_is_refused_also_if_the_call_is_robust(self):
        with pytest.raises(InvalidMessage):
            publish("thread:message", {}, robust=True)

    def test_message_waits_for_the_transaction_of_its_database_and_no_other(self):
        with transaction.atomic():
            publish("thread:message", MESSAGE, using="default")
            assert published() == []
        with pytest.raises(ConnectionDoesNotExist, match="elsewhere"):
            publish("thread:message", MESSAGE, using="elsewhere")
        assert len(published()) == 1

    async def test_call_in_an_event_loop_is_refused_and_names_the_asynchronous_one(self):
        with pytest.raises(SynchronousOnlyOperation, match="apublish"):
            publish("thread:message", MESSAGE)
        with pytest.raises(SynchronousOnlyOperation, match="aonline"):
            online("sales")

    def test_redis_that_accepts_and_says_nothing_is_waited_for_as_long_as_the_setting_says(self, settings):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
            settings.REALTIME = {**settings.REALTIME, "REDIS_URL": url, "PUBLISH_TIMEOUT": 0.3}
            begun = time.monotonic()
            for ask in (lambda: publish("thread:message", MESSAGE), lambda: online("sales")):
                with pytest.raises(redis.TimeoutError):
                    ask()
            assert time.monotonic() - begun < 10  # a socket's own time-out is 5 s, twice

    async def test_asynchronous_code_publishes_too(self, process):
        await apublish("thread:message", MESSAGE)
        assert len(published()) == 1

    @pytest.mark.usefixtures("realtime_redis", "without_outbox")
    async def test_asynchronous_calls_that_wait_for_each_other_wait_for_redis_once(
        self, monkeypatch, settings
    ):
        """They run one after the other; the tenth must not wait ten times as long as the setting says."""
        settings.REALTIME = {**settings.REALTIME, "PUBLISH_TIMEOUT": 0.5}
        ends: list[float] = []

        def in_vain(messages, until, direct):
            ends.append(until)
            time.sleep(max(until - now(), 0))
            raise redis.TimeoutError

        monkeypatch.setattr("realtime.publisher.append", in_vain)
        calls = [apublish("thread:message", MESSAGE) for _ in range(10)]
        assert len(await asyncio.gather(*calls, return_exceptions=True)) == len(ends) == 10
        assert max(ends) - min(ends) < 0.5

    async def test_published_message_reaches_its_room(self, process):
        async with bridging(), connected() as ana:
            await ana.call("join:thread", {"thread_id": 42})
            await apublish("thread:message", MESSAGE, id="m-7")
            await apublish("thread:message", MESSAGE, id="m-7")
            assert (await ana.expect("thread:message"))["data"] == {"thread_id": "42", "message_id": "7"}
            await ana.nothing("thread:message")


# --- Who is available --------------------------------------------------------------------------------


def present(user: str, *groups: str, status: str = "online") -> None:
    store.apply_sync(
        HUB,
        [
            {
                "does": "connect",
                "connection": f"c-{user}",
                "user": user,
                "name": user.title(),
                "groups": groups,
            },
            {"does": "choose", "user": user, "status": status, "reason": "chosen"},
        ],
    )


def test_online_are_users_who_are_in_the_group_and_not_away():
    present("ana", "sales", "support")
    present("bob", "sales", status="away")
    present("cem", "support")
    assert online("sales") == ["ana"]
    assert sorted(online("support")) == ["ana", "cem"]
    assert online("empty") == []


async def test_asynchronous_code_can_ask_too():
    await sync_to_async(present)("ana", "sales")
    assert await aonline("sales") == ["ana"]


# --- Examples ----------------------------------------------------------------------------------------


async def run_examples(documented: Any) -> None:
    """Run the examples in a docstring, which may await, and compare what they return."""
    names: dict[str, Any] = {**vars(publisher)}
    for example in DocTestParser().get_examples(documented.__doc__):
        if example.source.startswith("from "):
            continue
        code = compile(example.source, "example", "eval", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        evaluate = sync_to_async(eval)
        result = await (eval(code, names) if code.co_flags & inspect.CO_COROUTINE else evaluate(code, names))
        assert example.want == ("" if result is None else f"{result!r}\n")


@pytest.mark.django_db(transaction=True)
async def test_examples_of_publishing_arrive(process):
    async with bridging(), connected() as ana, connected("hub", "9") as user:
        await ana.call("join:thread", {"thread_id": 42})
        for documented in (publisher, publish, apublish):
            await run_examples(documented)
        for expected in ("hi", None):
            assert (await ana.expect("thread:message"))["data"].get("body") == expected
        await ana.expect("chat:ended")
        assert (await user.expect("chat:ended"))["room"] == "user:9"


def test_question_that_can_have_no_answer_is_refused():
    with pytest.raises(TypeError, match="group: expected the name of a presence group, got Group"):
        online(Group(name="sales"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected one with presence \(hub, portal\), got 'hubb'"):
        online("sales", namespace="hubb")
    assert online("no/group") == []


@pytest.mark.django_db(transaction=True)
def test_address_that_cannot_be_used_is_found_before_the_commit(settings):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "http://redis"}
    with transaction.atomic(), pytest.raises(ImproperlyConfigured, match="REDIS_URL cannot be used"):
        publish("thread:message", MESSAGE, robust=True)


@pytest.mark.parametrize("what", ["rooms", "namespaces"])
def test_one_name_in_place_of_several_is_not_taken_for_its_characters(what: str):
    with pytest.raises(InvalidMessage, match=rf"Expected `array.*`, got `str` - at `\$.{what}`"):
        publish("thread:message", MESSAGE, **{what: "thread:42"})  # type: ignore[arg-type]
    assert published() == []


async def test_examples_of_asking_who_is_online_are_true():
    await sync_to_async(present)("7", "sales")
    await sync_to_async(present)("8", "sales", status="away")
    for documented in (online, aonline):
        await run_examples(documented)
