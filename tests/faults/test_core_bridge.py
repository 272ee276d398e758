"""What is large, or much, on the bus must not keep everything else waiting: the bridge behind a network that counts."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP

from tests.e2e.harness import ROOT, eventually, free_port, unique
from tests.faults.crowd import Product, running
from tests.faults.network import Network
from tests.faults.proxy import to_socket


@asynccontextmanager
async def behind_a_network(tmp_path: Path) -> AsyncIterator[tuple[Product, Network]]:
    """Only the bridge speaks to Redis through it."""
    with Product(tmp_path) as product:
        async with Network(to_socket(product.server.socket)) as network:
            through = {"REDIS_URL": f"redis://127.0.0.1:{network.port}/0"}
            await asyncio.to_thread(product.start, bridge=through)
            yield product, network


async def test_much_that_is_large_is_delivered_over_a_slow_link_and_what_is_behind_it_too(tmp_path: Path):
    """All of it at once takes longer than the time-out of a command."""
    async with behind_a_network(tmp_path) as (product, network):
        threads = [unique("th") for _ in range(3)]
        member = await product.member(product.stack.token(role="admin"), "hub")
        for thread in threads:
            await member.call("join:thread", {"thread_id": thread})
        network.upload_rate = 1_000_000
        written = [f"m{number}" for number in range(30)]
        product.say_in_turn(threads, written, size=60_000)
        product.say(threads[0], "behind")
        await member.event("thread:message", '"behind"')
        for thread in threads[1:]:
            assert member.messages(f"thread:{thread}") == written
        assert member.messages(f"thread:{threads[0]}") == [*written, "behind"]


def memory(product: Product) -> int:
    """The most memory that the bridge has ever had, in bytes."""
    status = Path(f"/proc/{product.bridge.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def say_in_many(product: Product, thread: str, rooms: Sequence[str], size: int, **more: object) -> None:
    data = {"thread_id": thread, "message_id": "many", "text": "x" * size}
    message = {"event": "thread:message", "data": data, "rooms": [*rooms], **more}
    product.stack.redis.xadd(product.stack.key("stream"), {"message": json.dumps(message)})


async def test_large_message_for_a_thousand_rooms_goes_to_redis_once(tmp_path: Path):
    async with behind_a_network(tmp_path) as (product, network):
        thread = unique("th")
        member = await product.member(product.customer(thread))
        await member.call("join:thread", {"thread_id": thread})
        rooms = [f"thread:{unique('r')}" for _ in range(999)]
        uploaded, before = network.uploaded, memory(product)
        for _ in range(2):
            say_in_many(product, thread, [*rooms, f"thread:{thread}"], 150_000, namespaces=["portal"])
        product.say(thread, "behind")
        await eventually(
            lambda: (
                member.messages(f"thread:{thread}")[-1:] == ["behind"]
                or network.uploaded - uploaded > 20_000_000
            ),
        )
        assert network.uploaded - uploaded < 3_000_000, "the body went to Redis again and again"
        assert memory(product) - before < 50_000_000
        assert member.messages(f"thread:{thread}") == ["many", "many", "behind"]


async def test_message_that_names_too_many_rooms_is_a_dead_letter(tmp_path: Path):
    """Each namespace has rooms of its own: these are more than a thousand."""
    async with behind_a_network(tmp_path) as (product, _):
        thread = unique("th")
        member = await product.member(product.customer(thread))
        await member.call("join:thread", {"thread_id": thread})
        say_in_many(product, thread, [f"thread:{unique('r')}" for _ in range(600)] + [f"thread:{thread}"], 10)
        product.say(thread, "behind")
        await member.event("thread:message", '"behind"')
        assert member.messages(f"thread:{thread}") == ["behind"]
        (letter,) = product.stack.dead_letters()
        assert "rooms" in letter["reason"]


async def test_control_work_is_pipelined(tmp_path: Path):
    """Hundreds of rights are granted in far fewer round trips, and the message behind them need not wait for each."""
    async with behind_a_network(tmp_path) as (product, network):
        thread = unique("th")
        users = [unique("u") for _ in range(400)]
        member = await product.member(product.customer(user_id=users[-1]))
        witness = await product.member(product.stack.token(role="admin"), "hub")
        await witness.call("join:thread", {"thread_id": thread})
        network.delay = 0.001
        before = network.round_trips
        with product.stack.redis.pipeline(transaction=True) as pipeline:
            for user_id in users:
                data = {"thread_id": unique("th"), "attendant_id": "7", "user_id": user_id}
                if user_id == users[-1]:
                    data["thread_id"] = thread
                message = json.dumps({"event": "chat:accepted", "data": data})
                pipeline.xadd(product.stack.key("stream"), {"message": message})
            pipeline.execute()
        product.say(thread, "behind")
        await witness.event("thread:message", '"behind"')
        took = network.round_trips - before
        assert took < len(users) / 2, f"{took} round trips"
        await member.call("join:thread", {"thread_id": thread})


PRODUCT = """
import asyncio, sys, time

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from realtime.bridge import bus_handlers
from realtime.protocol.catalogue import BusContext, control_event, on_bus
from realtime.protocol.payloads import Payload

bus_handlers.HANDLER_SECONDS = 1.0


@control_event("crm:sync")
class Sync(Payload, frozen=True):
    how: str


@on_bus("crm:sync")
async def sync(payload: Sync, context: BusContext) -> None:
    await HOW[payload.how]()


async def cache_down():
    await redis.Redis(port={port}, retry=Retry(NoBackoff(), 0)).incr("synced")


async def service_down():
    await asyncio.open_connection("127.0.0.1", {port})


async def cancelled():
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def exits():
    sys.exit(3)


async def interrupted():
    raise KeyboardInterrupt


async def group():
    raise BaseExceptionGroup("all", [KeyboardInterrupt(), ConnectionError()])


async def hangs():
    await asyncio.Event().wait()


async def blocks():
    time.sleep(3)  # longer than the lease


HOW = {{
    "ConnectionError": cache_down,
    "ConnectionRefusedError": service_down,
    "CancelledError": cancelled,
    "SystemExit": exits,
    "KeyboardInterrupt": interrupted,
    "BaseExceptionGroup": group,
    "TimeoutError": hangs,
    "none": blocks,
}}
"""


async def test_handlers_of_a_product_break_nothing_but_themselves(tmp_path: Path):
    """A handler may raise anything and take any time: the bridge lives, and delivers the messages behind it."""
    (tmp_path / "crm_events.py").write_text(PRODUCT.format(port=free_port()))
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    async with running(tmp_path, REALTIME_EVENTS="crm_events", PYTHONPATH=path) as product:
        product.stack.assert_calm = lambda: None  # type: ignore[method-assign]  # each is logged with its stack
        await asyncio.to_thread(product.stack.start, "runbridge")
        thread = unique("th")
        member = await product.member(product.customer(thread))
        await member.call("join:thread", {"thread_id": thread})
        ways = ["ConnectionError", "ConnectionRefusedError", "CancelledError", "SystemExit"]
        ways += ["KeyboardInterrupt", "BaseExceptionGroup", "TimeoutError", "none"]
        for way in ways:
            product.stack.add("crm:sync", {"how": way})
            product.say(thread, way)
        await member.event("thread:message", '"none"')
        assert member.messages(f"thread:{thread}") == ways
        failed = {letter["reason"].split("(")[0] for letter in product.stack.dead_letters()}
        assert failed == {f"handler_failed: {way}" for way in ways[:-1]}
        for process in product.stack.processes:
            assert process.is_running, process.output


async def test_bridge_that_was_suspended_does_not_move_the_cursor_back(tmp_path: Path):
    """The bridge has read an entry, and delivers it when the other bridges are already beyond it."""
    async with running(tmp_path) as product:
        thread = unique("th")
        member = await product.member(product.stack.token(role="admin"), "hub")
        await member.call("join:thread", {"thread_id": thread})
        await product.delivered(product.say(thread, "before"))
        product.bridge.signal(SIGSTOP)
        product.say(thread, "one")  # it waits for news: this is handed to it
        await asyncio.to_thread(product.stack.start, "runbridge")
        await product.delivered(product.say(thread, "two", "three"))
        last = product.cursor()
        behind = len(product.bridge.output)
        product.bridge.signal(SIGCONT)
        await eventually(lambda: "standing by" in product.bridge.output[behind:])
        assert product.cursor() == last
        await member.event("thread:message", '"three"')
        assert member.messages(f"thread:{thread}") == ["before", "one", "two", "three"]


async def test_lone_bridge_that_is_suspended_loses_and_doubles_nothing(tmp_path: Path):
    """Messages without an id wait on its Pub/Sub connection meanwhile, and no other bridge takes the lease."""
    async with running(tmp_path) as product:
        thread, redis, published = unique("th"), product.stack.redis, list[str]()
        member = await product.member(product.stack.token(role="admin"), "hub")
        await member.call("join:thread", {"thread_id": thread})

        def publish() -> None:
            ids = [str(len(published) + number) for number in range(300)]
            published.extend(ids)
            with redis.pipeline(transaction=False) as pipe:
                for id in ids:
                    message = {"event": "thread:message", "data": {"thread_id": thread, "message_id": id}}
                    pipe.publish(product.stack.key("events"), json.dumps(message))
                pipe.execute()

        for _ in range(3):
            publish()  # it is busy when it is suspended
            product.bridge.signal(SIGSTOP)
            publish()
            await eventually(lambda: not redis.exists(product.stack.key("lease:bridge")))
            publish()
            product.bridge.signal(SIGCONT)
            publish()
            await eventually(lambda: len(member.messages(f"thread:{thread}")) >= len(published))
        assert member.messages(f"thread:{thread}") == published
