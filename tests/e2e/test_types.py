"""The types that are generated for a product are those of what its clients get, through real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import ROOT, Client, Stack, python, unique
from tests.e2e.test_asyncapi import Document

CLIENT = ROOT / "client"
EVENTS = "tests.wire.events"

FROM_PYTHON = """
import datetime as dt, decimal, sys, uuid
import django; django.setup()
from realtime.publisher import publish
from tests.wire.events import Line
from tests.wire.shapes import Dog, Level, Status, Tree

publish("order:changed", {
    "thread_id": sys.argv[1],
    "order_id": uuid.UUID(int=7),
    "watcher_ids": [7, "8"],
    "owners": {7: 8},
    "place": (7, 7),
    "lines": [Line(item_id=7, unit_price=decimal.Decimal("1.10"))],
    "tree": Tree(7, [Tree(8)]),
    "pet": Dog(owner_ids=[7]),
    "status": Status.OPEN,
    "level": Level.HIGH,
    "priority": 2,
    "placed_at": dt.datetime(2026, 3, 1, tzinfo=dt.UTC),
    "due": None,
    "lasts": dt.timedelta(minutes=1.5),
    "total": decimal.Decimal("2.20"),
    "tags": {"new"},
    "counts": {Level.LOW: 1},
    "group": "E\\u0301quipe",
    "discount": None,
    "body": {"of": 7},
})
"""
FROM_ANOTHER_LANGUAGE = {
    "order_id": "00000000000000000000000000000007",
    "watcher_ids": [7, "8"],
    "owners": {"7": 8},
    "place": [7, 7],
    "lines": [{"itemId": 7, "unitPrice": 1.10, "note": None, "more": 7}],
    "tree": {"node_id": 7, "children": [{"node_id": 8}]},
    "pet": {"type": "cat", "cat_id": 7},
    "status": "open",
    "level": 3,
    "priority": 2,
    "placed_at": "2026-03-01T00:00:00Z",
    "due": "2026-03-01",
    "lasts": "PT90S",
    "total": 2,
    "tags": ["new"],
    "counts": {"1": 1},
    "gift": True,
}


@pytest.fixture(scope="module")
def product(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A system whose product has the events of the shop."""
    with Stack(
        tmp_path_factory.mktemp("shop"), redis_url, REALTIME_EVENTS=EVENTS, PYTHONPATH=str(ROOT)
    ) as stack:
        yield stack.start_all()


def generated(*command: str) -> str:
    """What a command prints without keys, without DEBUG, and with neither a database nor a Redis."""
    needed = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    unreachable = {"REDIS_URL": "redis://127.0.0.1:1/0", "DATABASE_URL": "postgres://127.0.0.1:1/none"}
    done = python("manage.py", *command, env={**needed, **unreachable, "REALTIME_EVENTS": EVENTS})
    assert done.returncode == 0, done.stderr
    return done.stdout


class Frames:
    """What a client of the shop gets, in every way there is."""

    def __init__(self, product: Stack) -> None:
        self._product = product
        self.thread = unique("th")

    async def collect(self) -> list[dict[str, Any]]:
        """Frames of the event that is published from Python and from elsewhere, of the emitted one, and the answer."""
        async with self._product.client("hub") as ana, self._product.client("hub") as bia:
            for client in (ana, bia):
                await client.call("join:thread", {"thread_id": self.thread})
            published = [await self._from_python(bia), await self._from_another_language(bia)]
            answer = await ana.call("order:see", {"thread_id": self.thread, "line_ids": [7, "8"]})
            emitted = await bia.expect("order:seen")
        return [*published, emitted, {"event": "ack", "id": 1, "data": answer}]

    async def _from_python(self, client: Client) -> dict[str, Any]:
        settings = "realtime.settings.sockets"
        done = self._product.run("-c", FROM_PYTHON, self.thread, DJANGO_SETTINGS_MODULE=settings)
        assert done.returncode == 0, done.stderr
        return await client.expect("order:changed")

    async def _from_another_language(self, client: Client) -> dict[str, Any]:
        self._product.add("order:changed", {"thread_id": self.thread, **FROM_ANOTHER_LANGUAGE})
        return await client.expect("order:changed")


async def test_frames_fit_the_generated_document_and_ids_are_strings_everywhere(product: Stack):
    python, other, emitted, ack = await Frames(product).collect()
    document = Document(json.loads(generated("generateasyncapi")))
    for frame in (python, other):
        document.check("hub", "server.order.changed", frame)
    document.check("hub", "server.order.seen", emitted)
    document.check("hub", "ack.order.see", ack)
    for frame in (python, other):
        data = frame["data"]
        assert data["order_id"] == "00000000-0000-0000-0000-000000000007"
        assert (data["watcher_ids"], data["owners"], data["place"]) == (["7", "8"], {"7": "8"}, ["7", 7])
        assert (data["lines"][0]["itemId"], data["tree"]["children"][0]["node_id"]) == ("7", "8")
    assert python["data"]["pet"] == {"type": "dog", "ownerIds": ["7"]}
    assert other["data"]["pet"] == {"type": "cat", "cat_id": "7"}
    assert (python["data"]["total"], other["data"]["total"]) == ("2.20", "2")
    assert (python["data"]["group"], python["data"]["discount"]) == ("Équipe", None)
    assert other["data"]["lines"] == [{"itemId": "7", "unitPrice": "1.1", "note": None, "more": 7}]
    assert python["data"]["body"] == {"of": 7}  # a field that is not declared
    assert emitted["data"]["line_ids"] == ["7", "8"]
    assert ack["data"]["viewer_ids"] == ["7", "8"]
    assert ack["data"]["line"] == {"itemId": "7", "unitPrice": "1", "note": None}


def test_every_acknowledgement_is_described_on_the_page():
    row = next(line for line in generated("documentevents").splitlines() if line.startswith("| `order:see`"))
    assert "`viewer_ids` list, `total` decimal, `until` datetime, `level` `1` or `3`" in row
    assert "`closed?` boolean" in row


OWN_SETTINGS = """
INSTALLED_APPS = ["realtime"]
REALTIME = {"NAMESPACES": ["realtime.namespaces.hub.HUB"], "EVENTS": ["shop_events"]}
"""
OWN_EVENTS = """
from realtime.protocol.catalogue import server_event
from realtime.protocol.payloads import Payload

@server_event("shop:opened", rooms=lambda payload: ["presence:shop"])
class ShopOpened(Payload, frozen=True):
    clerks: list[{kind}]
"""


def with_own_settings(folder: Path, command: str, kind: str) -> subprocess.CompletedProcess[str]:
    """A generator run by Django's own command line, with settings that have neither keys nor a database."""
    (folder / "shop_settings.py").write_text(OWN_SETTINGS)
    (folder / "shop_events.py").write_text(OWN_EVENTS.format(kind=kind))
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return python("-m", "django", command, "--settings", "shop_settings", folder=folder, env=env)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("generateclient", '"shop:opened": { clerks: (string)[];'),
        ("generateasyncapi", '"server.shop.opened": {'),
        ("documentevents", "| `shop:opened` | ✓ | `presence:shop` | `clerks` list |"),
    ],
)
def test_generators_run_with_a_teams_own_settings(tmp_path: Path, command: str, text: str):
    done = with_own_settings(tmp_path, command, "str")
    assert (done.returncode, done.stderr) == (0, "")
    assert text in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generateclient", "generateasyncapi", "documentevents"])
def test_type_that_json_has_no_form_for_ends_a_generator_with_one_sentence(tmp_path: Path, command: str):
    done = with_own_settings(tmp_path, command, "bytes")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "CommandError: event 'shop:opened': clerks: JSON has no form for bytes\n"


# --- The TypeScript client -----------------------------------------------------------------------------

PAGE = """\
import { Socket, type Acks, type ServerEvents } from "realtime-sockets";
import { useSocketEvent } from "realtime-sockets/react";

export async function page(socket: Socket): Promise<boolean | undefined> {
  socket.on("order:changed", ({ watcher_ids, pet, priority, due, gift }) => {
    const ids: string[] = watcher_ids;
    const owner: string | undefined = pet.type === "cat" ? pet.cat_id : pet.ownerIds[0];
    const one: 1 | 2 | 3 = priority;
    return [ids, owner, one, due?.length, gift === true];
  });
  useSocketEvent(socket, "order:changed", ({ lines }) => lines[0]?.itemId.length);
  socket.emit("order:see", { thread_id: 7, line_ids: [7, "8"] });
  const { viewer_ids, line, closed } = await socket.call("order:see", { thread_id: "7" });
  socket.on("thread:message", ({ message_id }) => message_id.length);

  // @ts-expect-error an id is delivered as a string
  socket.on("order:changed", ({ watcher_ids }) => watcher_ids[0].toFixed());
  // @ts-expect-error it may be null
  socket.on("order:changed", ({ due }) => due.length);
  // @ts-expect-error it may be missing
  socket.on("order:changed", ({ group }) => group.length);
  // @ts-expect-error there is no such priority
  socket.on("order:changed", ({ priority }) => priority === 4);
  // @ts-expect-error the thread is missing
  socket.emit("order:see", { line_ids: [] });
  // @ts-expect-error a line's id is no boolean
  void socket.call("order:see", { thread_id: 7, line_ids: [true] });
  return viewer_ids[0] === line.itemId ? closed : undefined;
}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has installed the packed client, and keeps the generated declarations beside its sources."""
    folder = tmp_path_factory.mktemp("page")
    source, modules = folder / "client", folder / "node_modules"
    shutil.copytree(CLIENT, source, ignore=shutil.ignore_patterns("node_modules", "dist", "examples"))
    (source / "node_modules").symlink_to(CLIENT / "node_modules")
    subprocess.run(["npm", "pack", "--silent"], cwd=source, check=True, capture_output=True)
    (modules / "@types").mkdir(parents=True)
    shutil.unpack_archive(next(source.glob("*.tgz")), folder, "gztar", filter="data")
    (folder / "package").rename(modules / "realtime-sockets")
    for name in ("react", "@types/react"):
        (modules / name).symlink_to(CLIENT / "node_modules" / name)
    (folder / "src").mkdir()
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    (folder / "realtime-events.d.ts").write_text(generated("generateclient"))
    (folder / "src" / "page.ts").write_text(PAGE)
    return folder


def compiled(folder: Path, module: str, resolution: str) -> str:
    """What the compiler complains about."""
    options = {
        "strict": True,
        "noEmit": True,
        "skipLibCheck": False,
        "skipDefaultLibCheck": True,
        "target": "ES2022",
        "lib": ["ES2022", "DOM", "DOM.Iterable"],
        "types": [],
        "module": module,
        "moduleResolution": resolution,
    }
    config = {"compilerOptions": options, "include": ["src", "realtime-events.d.ts"]}
    (folder / "tsconfig.json").write_text(json.dumps(config))
    command = [str(CLIENT / "node_modules" / ".bin" / "tsc"), "--project", str(folder)]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


@pytest.mark.needs_tools
@pytest.mark.parametrize(("module", "resolution"), [("commonjs", "node10"), ("nodenext", "nodenext")])
def test_one_line_in_tsconfig_makes_the_socket_know_the_events(project: Path, module: str, resolution: str):
    assert not compiled(project, module, resolution)


@pytest.mark.needs_tools
async def test_frames_fit_the_types_of_the_installed_client(product: Stack, project: Path):
    """The way of a bundler, which is the third."""
    frames = await Frames(product).collect()
    kinds = [
        'ServerEvents["order:changed"]',
        'ServerEvents["order:changed"]',
        'ServerEvents["order:seen"]',
        'Acks["order:see"]',
    ]
    emitted = frames[2]["data"]
    for more in (
        "namespace",
        "name",
    ):  # of the author: not declared, and a literal may have declared fields only
        emitted.pop(more)
    frames[1]["data"]["lines"][0].pop("more")
    values = [
        f"export const value{number}: {kind} = {json.dumps(frame['data'])};"
        for number, (kind, frame) in enumerate(zip(kinds, frames, strict=True))
    ]
    head = 'import type { Acks, ServerEvents } from "realtime-sockets";'
    (project / "src" / "values.ts").write_text("\n".join([head, *values]))
    assert not compiled(project, "preserve", "bundler")
