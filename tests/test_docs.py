"""The documentation tells the truth: what exists is documented, and what is documented exists."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand

from realtime.client import Client, retries
from realtime.conf import OWN_VARIABLES, Conf, Limits
from realtime.protocol.catalogue import catalogue
from realtime.protocol.close_codes import STOP, CloseCode
from realtime.protocol.envelope import ErrorCode
from realtime.protocol.handshake_errors import STATUSES
from realtime.protocol.namespaces import namespaces, override_names
from realtime.server import endpoints
from realtime.spec.markdown import events_markdown
from tests.e2e.harness import ROOT

DOCS = ROOT / "docs"
CLIENT = ROOT / "client"
PAGES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))),
    *(CLIENT / "README.md", *sorted(CLIENT.glob("examples/*/README.md"))),
]
SOURCES = [
    path
    for folder in ("realtime", "hub", "portal", "presence", "demo")
    for path in (ROOT / folder).rglob("*.py")
]


def section(page: str, title: str) -> str:
    """What stands below a title, up to the next one of the same or a higher level."""
    lines = (DOCS / page).read_text().splitlines()
    [start] = [number for number, line in enumerate(lines) if re.fullmatch(rf"#+ {re.escape(title)}", line)]
    level = len(lines[start].split()[0])
    body: list[str] = []
    for line in lines[start + 1 :]:
        if re.match(rf"#{{1,{level}}} ", line):
            break
        body.append(line)
    return "\n".join(body)


def rows(text: str, *header: str) -> list[list[str]]:
    """The cells of the tables, or of the table with this header."""
    found: list[list[str]] = []
    wanted = False
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and following.startswith("|--"):
            wanted = not header or cells == list(header)
        elif line.startswith("|") and not line.startswith("|--") and wanted:
            found.append(cells)
    return found


def names(cell: str) -> list[str]:
    """What a cell has in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def first_names(text: str, *header: str) -> list[str]:
    return [name for row in rows(text, *header) for name in names(row[0])]


# --- Events and codes --------------------------------------------------------------------------------


def test_page_of_events_is_what_the_catalogue_says():
    assert (DOCS / "events.md").read_text() == events_markdown(), "stale: run `make docs`"


def test_every_event_is_on_the_page_of_events_and_no_other():
    events = catalogue()
    documented = first_names((DOCS / "events.md").read_text())
    assert sorted(documented) == sorted([*events.client, *events.server, *events.control])


OWN_EVENTS = ("connection:lost", "connection:refused", "room:joined")
"""What the Python client says beside the server's events."""


def test_every_line_of_the_log_that_is_documented_is_written():
    text = section("metrics.md", "Logs")
    lines = first_names(text, "line", "fields")
    lines += [name for row in rows(text, "from", "level", "line", "meaning") for name in names(row[2])]
    written = {
        value.value
        for path in SOURCES
        for value in ast.walk(ast.parse(path.read_text()))
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    }
    assert lines
    assert {*lines} <= written


def test_every_reason_of_a_dead_letter_is_documented():
    calls = [
        call
        for path in SOURCES
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "InvalidMessage"
    ]
    reasons = {ast.literal_eval(call.args[0]) for call in calls}
    assert sorted(first_names(section("protocol.md", "Dead letters"))) == sorted(reasons)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_event_that_a_page_speaks_of_exists(page: Path):
    events = catalogue()
    known = {*events.client, *events.server, *events.control, *OWN_EVENTS}
    spoken = set(re.findall(r"`((?!realtime:|ticket:)[a-z]+:[a-z]+)[` {]", page.read_text()))
    assert spoken <= known


def test_every_close_code_is_documented_with_what_a_client_does():
    table = {row[0]: row[2] for row in rows(section("protocol.md", "Close codes"))}
    assert "reconnect" in table.pop("any other")
    assert {int(code) for code in table} == set(CloseCode)
    assert {int(code) for code, consequence in table.items() if consequence == "stop"} == STOP


def test_clients_stop_where_the_protocol_says_so():
    assert {code for code in retries.DENIED if code >= 1000} | {retries.NORMAL} == STOP
    source = (CLIENT / "src" / "closing.ts").read_text()
    [codes] = re.findall(r"STOP = \[([\d, ]+)\]", source)
    assert {int(code) for code in codes.split(",")} == STOP


def test_every_error_code_is_documented():
    documented = first_names(section("protocol.md", "Frames"), "error code", "meaning")
    assert sorted(documented) == sorted(ErrorCode)


def test_every_refusal_is_documented_with_its_status():
    table = rows(section("protocol.md", "Refused"))
    assert {code: int(row[0]) for row in table for code in names(row[1])} == STATUSES


def test_every_address_of_the_socket_server_is_documented():
    documented = first_names(section("protocol.md", "HTTP on the same port"))
    assert sorted(documented) == sorted(endpoints.ENDPOINTS)


# --- Settings ----------------------------------------------------------------------------------------


def variables_read() -> set[str]:
    """Environment variables that the sources read by name."""
    call = r'(?:environ(?:\.get|\.setdefault)?[(\[]|flag\(|_number\(|_choice\(|_key\(|_names\()"([A-Z_]+)"'
    found = {name for path in SOURCES for name in re.findall(call, path.read_text())}
    return (found | {"DATABASE_URL"}) - {"MAKELEVEL"}  # read by dj_database_url; set by make itself


def test_every_environment_variable_is_documented():
    documented = first_names(section("settings.md", "Both sides"))
    own = {name for name in OWN_VARIABLES if name != "TRUSTED_PROXIES"}
    assert sorted(documented) == sorted(variables_read() | own)


def test_every_setting_is_documented():
    documented = first_names(section("settings.md", "REALTIME"), "name", "default", "")
    settings = {field.encode_name for field in msgspec.structs.fields(Conf)}
    assert sorted(documented) == sorted(settings - {"REDIS_URL", "ALLOWED_ORIGINS"})


def test_every_limit_is_documented():
    documented = first_names(section("settings.md", "Limits"))
    assert sorted(documented) == sorted(
        f"REALTIME_LIMIT_{field.encode_name}" for field in msgspec.structs.fields(Limits)
    )


def defaults() -> Iterator[tuple[str, float]]:
    for prefix, kind in (("", Conf), ("REALTIME_LIMIT_", Limits)):
        for field in msgspec.structs.fields(kind):
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                yield prefix + field.encode_name, field.default


@pytest.mark.parametrize(("name", "default"), [*defaults()])
def test_default_is_the_documented_one(name: str, default: float):
    table = {name: row[1] for row in rows((DOCS / "settings.md").read_text()) for name in names(row[0])}
    documented = re.match(r"\d+(\.\d+)?", table[name])
    assert documented
    assert float(documented[0]) == default


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_variable_that_a_page_speaks_of_exists(page: Path):
    known = {f"REALTIME_{field.encode_name}" for field in msgspec.structs.fields(Conf)}
    known |= {f"REALTIME_{name}" for name in override_names(namespaces())}
    known |= {f"REALTIME_LIMIT_{field.encode_name}" for field in msgspec.structs.fields(Limits)}
    assert set(re.findall(r"REALTIME_[A-Z_]*[A-Z]\b", page.read_text())) <= known


def test_every_check_is_documented_and_has_a_hint():
    documented = first_names(section("settings.md", "Checks"))
    ids = []
    files = [
        *(ROOT / "realtime/checks").glob("*.py"),
        ROOT / "presence/checks.py",
        ROOT / "realtime/outbox/checks.py",
    ]
    for call in chain.from_iterable(ast.walk(ast.parse(path.read_text())) for path in files):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in {"Error", "CheckWarning"}:
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            assert "hint" in given, ast.unparse(call)
            id = ast.literal_eval(given["id"])
            if not re.search(r"\.[WI]1", id):  # the checklist for production has its own page
                ids.append(id)
    assert sorted(documented) == sorted(set(ids))


# --- Commands ----------------------------------------------------------------------------------------

COMMANDS = {
    path.stem: ".".join(path.relative_to(ROOT).parts[:-3])
    for path in sorted(ROOT.glob("**/management/commands/*.py"))
    if path.stem != "__init__" and not {".venv", ".run"} & set(path.parts)
}


def options(command: BaseCommand, name: str) -> set[str]:
    return set(
        re.findall(r"(?<![\w-])--?[a-z][\w-]*", command.create_parser("manage.py", name).format_help())
    )


def test_every_command_is_documented():
    text = (DOCS / "commands.md").read_text()
    assert sorted(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == sorted(COMMANDS)


@pytest.mark.parametrize("name", [*COMMANDS])
def test_every_option_of_a_command_is_documented(name: str):
    command: Any = load_command_class(COMMANDS[name], name)
    documented = first_names(section("commands.md", name))
    assert sorted(documented) == sorted(options(command, name) - options(BaseCommand(), name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_speaks_of_exists(page: Path):
    spoken = set(re.findall(r"manage\.py ([a-z]+)", page.read_text()))
    own = set(re.findall(r"/management/commands/(\w+)\.py", page.read_text()))
    assert spoken <= {*COMMANDS, *get_commands(), *own}


def test_every_target_of_make_is_documented():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert sorted(targets) == sorted(phony.split())
    assert sorted(first_names(section("commands.md", "make"))) == sorted(targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_target_that_a_page_speaks_of_exists(page: Path):
    spoken = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert spoken <= set(first_names(section("commands.md", "make")))


OPTIONS = [
    parameter
    for parameter in inspect.signature(Client).parameters.values()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_option_of_the_python_client_is_documented_with_its_default(option: inspect.Parameter):
    default = "`websockets.connect`" if option.name == "connect" else str(option.default)
    row = rf"^\| `{option.name}` \| `?{re.escape(default)}`? \|"
    assert re.search(row, (DOCS / "clients.md").read_text(), re.MULTILINE)


def test_options_of_the_typescript_client_are_documented_with_their_defaults():
    source = (CLIENT / "src" / "options.ts").read_text()
    options = re.findall(r"\(default: ([^);]+)\)[^*]*\*/\s+(\w+)\?:", source)
    page = (CLIENT / "README.md").read_text()
    assert len(options) == 8
    for default, name in options:
        assert f"`{name}` ({default})" in page


LINKING = [*PAGES, ROOT / "CHANGELOG.md", CLIENT / "conformance" / "README.md"]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)]*)\)", page.read_text()):
        if "://" not in target:
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(found), f"{page.name} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's titles, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


# --- Architecture ------------------------------------------------------------------------------------


def defined(path: Path) -> set[str]:
    """The functions and classes of a file, and the methods of its classes as `Class.method`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if hasattr(each, "name")}
    return found


@pytest.mark.parametrize("path", ["A bus message", "A client's frame", "A handshake's token", "A heartbeat"])
def test_path_leads_through_code_that_exists(path: str):
    steps = rows(section("architecture.md", path), "where", "what", "does")
    assert len(steps) > 7
    for where, what, _ in steps:
        (file,), (name,) = names(where), names(what)
        assert name in defined(ROOT / file), f"{file} has no {name}"


def test_packages_are_those_of_the_import_contract():
    text = section("architecture.md", "The packages")
    listed = [set(names(row[0])) for row in rows(text, "package", "holds")]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if "containers" not in contract)
    assert listed == [set(layer.split(" | ")) for layer in layers]


MAPS = [DOCS / "architecture.md", ROOT / "CONTRIBUTING.md"]
"""Pages that name files of the project."""


@pytest.mark.parametrize("page", MAPS, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path):
    text = page.read_text()
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
    for name in re.findall(r"`(\w+\.py)`", text):
        assert any(path.name == name for path in SOURCES), f"{page.name} names {name}"


MOVED = frozenset({"position", "tail"})
"""Attributes of a listener and of a group on which every promise of delivery rests."""


def movers(tree: ast.AST, scope: str = "") -> Iterator[str]:
    """The functions, by their qualified names, that assign to one of these attributes."""
    for node in ast.iter_child_nodes(tree):
        inner = f"{scope}.{node.name}".strip(".") if isinstance(node, _SCOPES) else scope
        is_stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if is_stored and node.attr in MOVED:
            yield scope
        yield from movers(node, inner)


_SCOPES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_only_what_the_page_names_moves_a_position():
    documented = {
        (name, names(where)[0])
        for what, where, _ in rows(section("architecture.md", "What may move a position"))
        for name in names(what)
    }
    moving = {
        (name, str(path.relative_to(ROOT)))
        for path in SOURCES
        for name in movers(ast.parse(path.read_text()))
    }
    assert documented == moving


def test_positions_are_moved_where_the_test_can_see_it():
    for path in SOURCES:
        assert not re.search(r"setattr\([^,]+, \"(position|tail)\"", path.read_text()), path
