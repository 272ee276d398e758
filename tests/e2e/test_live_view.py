"""The live view over real processes: what an operator sees is so, and what they do happens."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest

from tests.e2e.admin import Admin, System
from tests.e2e.harness import ROOT, eventually, free_port, unique


async def _answers(admin: Admin, count: int) -> bool:
    return len(await admin.instances()) == count


@pytest.fixture(scope="module")
def started(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("live"), redis_url) as system:
        yield system.open()


@pytest.fixture
async def system(started: System) -> AsyncIterator[System]:
    """The system, in which both instances serve, and no other one was ever there."""
    if not started.two.is_running:
        started.two = await asyncio.to_thread(started.start_sockets, started.other_port)
    started.redis.delete(started.key("instances"))
    await eventually(lambda: _answers(started.admin, 2))
    yield started
    started.two.signal(SIGCONT)


async def test_instance_has_one_id_everywhere(system: System):
    for port, process in ((system.port, system.one), (system.other_port, system.two)):
        metrics = (await system.http("GET", "/metrics", port=port)).body.decode()
        (id,) = re.findall(r'realtime_instance_info{id="(\w+)",version="[^"]+"} 1', metrics)
        assert (await system.admin.instances())[process.pid] == id
        assert system.redis.hexists(system.key("instances"), id)
        assert f'"instance": "{id}"' in process.output


async def test_operator_finds_people_and_acts_on_them(system: System):
    admin, thread = system.admin, unique("th")
    ana, carla, bia = (unique(name) for name in ("ana", "carla", "bia"))
    async with (
        system.client("hub", ana, name="Ana Lima", groups=["sales"]) as first,
        system.client("hub", ana, port=system.other_port) as second,
        system.client("portal", carla, threads=[thread]) as customer,
        system.client("hub", bia, port=system.other_port) as other,
    ):
        all_clients = (first, second, customer, other)
        for client in all_clients:
            await client.call("join:thread", {"thread_id": thread})

        # The view covers both processes.
        assert set(await admin.find()) == {client.connection_id for client in all_clients}
        assert set(await admin.find(q=ana)) == {first.connection_id, second.connection_id}
        assert set(await admin.find(room=thread, namespace="portal")) == {customer.connection_id}
        assert set(await admin.find(room="presence:sales")) == {first.connection_id}
        processes = await admin.instances()
        assert set(processes) == {system.one.pid, system.two.pid}
        assert set(await admin.find(instance=processes[system.two.pid])) == {
            second.connection_id,
            other.connection_id,
        }
        rooms = await admin.get("presence/live/rooms/", q=thread)
        assert re.search(rf"thread:{thread}</a></th>\s*<td>hub</td>\s*<td [^>]*>3</td>", rooms)
        detail = await admin.get(f"presence/live/connections/{first.connection_id}/")
        for told in ("Ana Lima", f"thread:{thread}", "presence:sales", "up to date"):
            assert told in detail

        # A test event reaches whom it says.
        payload = f'{{"thread_id": "{thread}", "message_id": "by-hand"}}'
        await admin.do("presence/live/event/", event="thread:message", payload=payload, rooms="")
        for client in all_clients:
            await client.expect("thread:message", message_id="by-hand")

        # First one member of the team leaves the room in every tab, then the customer; all other clients stay.
        await admin.do(f"presence/live/users/hub/{ana}/move/{thread}/")
        for client in (first, second):
            assert (await client.expect("room:left"))["data"]["reason"] == "expelled"
        await admin.do(f"presence/live/users/portal/{carla}/move/{thread}/")
        assert (await customer.expect("room:left"))["data"]["reason"] == "forbidden"
        await first.call("join:thread", {"thread_id": thread})
        assert (await customer.refused("join:thread", {"thread_id": thread}))["code"] == "forbidden"
        await other.nothing("room:left", within=0.1)

        # Disconnected, in every tab.
        await admin.do(f"presence/live/users/hub/{ana}/disconnect/")
        assert [await client.expect_close() for client in (first, second)] == [4403, 4403]
        assert set(await admin.find()) == {customer.connection_id, other.connection_id}

        log = await admin.get("presence/live/log/")
        for told in ("Disconnected.", f"Taken out: thread:{thread}", "Sent: hub thread:"):
            assert told in log


@pytest.mark.slow
async def test_drained_instance_closes_all_connections_and_is_not_missed(system: System):
    processes = await system.admin.instances()
    async with (
        system.client("hub") as staying,
        system.client("hub", port=system.other_port) as leaving,
        system.client("portal", port=system.other_port) as customer,
    ):
        await system.admin.do(f"presence/live/instances/{processes[system.two.pid]}/drain/")
        assert [await client.expect_close() for client in (leaving, customer)] == [1012, 1012]
        assert system.two.wait() == 0
        assert set(await system.admin.instances()) == {system.one.pid}
        assert await system.admin.silent() == []
        assert staying.close_code is None


@pytest.mark.slow
async def test_instance_that_was_killed_or_stands_still_is_named(system: System):
    admin = system.admin
    assert set(await admin.instances()) == {system.one.pid, system.two.pid}
    system.two.signal(SIGSTOP)
    assert await admin.silent() == [system.two.pid]
    system.two.signal(SIGCONT)
    await eventually(lambda: _answers(admin, 2))
    assert await admin.silent() == []
    system.two.signal(SIGKILL)
    system.two.wait()
    assert await admin.silent() == [system.two.pid]
    page = await admin.get("presence/live/")
    assert "1 instance does not answer" in page


@pytest.mark.slow
async def test_drained_worker_is_started_again_by_its_parent(system: System):
    port = free_port()
    command = (str(ROOT / "manage.py"), "runsockets", "--workers", "2")
    workers = system.start("workers", *command, SOCKETS_PORT=str(port))
    await eventually(lambda: _answers(system.admin, 4))
    before = await system.admin.instances()
    worker = next(pid for pid in before if pid not in {system.one.pid, system.two.pid})
    await system.admin.do(f"presence/live/instances/{before[worker]}/drain/")

    async def replaced() -> bool:
        now = await system.admin.instances()
        return len(now) == 4 and worker not in now

    await eventually(replaced)
    assert workers.stop() == 0
