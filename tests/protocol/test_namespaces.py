"""What an app declares and what the settings register: values, and every mistake in them found at start."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from realtime.conf import Conf
from realtime.connections.consumer import NamespaceConsumer
from realtime.namespaces.hub import HUB
from realtime.namespaces.portal import PORTAL
from realtime.protocol.namespaces import (
    Namespace,
    Presence,
    RoomKind,
    kinds,
    namespaces,
    roles,
)
from realtime.protocol.rooms import group_name, is_room, is_room_name, room_of_group
from tests.checking import startup
from tests.e2e.harness import ROOT
from tests.ops.namespace import BOARD, LAB, OPS

APPLY = ROOT / "presence/scripts/apply.lua"
Register = Callable[..., None]


@pytest.fixture
def register(settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Register]:
    """Register these namespaces and no others."""
    module: Any = ModuleType("declared_here")
    monkeypatch.setitem(sys.modules, "declared_here", module)

    def register(*declared: object, **overrides: object) -> None:
        for number, each in enumerate(declared):
            setattr(module, f"N{number}", each)
        paths = [f"declared_here.N{number}" for number in range(len(declared))]
        settings.REALTIME = {**settings.REALTIME, "NAMESPACES": paths, **overrides}

    return register


@contextmanager
def settings_of(settings: Any, name: str, value: object) -> Iterator[None]:
    """With this entry of `REALTIME`, for a while."""
    before = settings.REALTIME
    settings.REALTIME = {**before, name: value}
    yield
    settings.REALTIME = before


def errors() -> dict[str, str]:
    return {message.id or "": message.msg for message in startup()}


# --- Ours --------------------------------------------------------------------------------------------


def test_hub_and_portal_are_registered_by_the_settings_we_ship():
    assert dict(namespaces()) == {"hub": HUB, "portal": PORTAL}
    assert HUB.roles == ("attendant", "admin")
    assert PORTAL.roles == ("customer",)
    assert roles() == {"attendant", "admin", "customer"}
    assert kinds().keys() == {"user", "thread", "presence"}


@pytest.mark.parametrize(
    ("namespace", "role", "is_listed"),
    [(HUB, "attendant", True), (HUB, "admin", False), (OPS, "supervisor", True), (LAB, "researcher", False)],
)
def test_presence_lists_the_roles_that_the_namespace_declares(
    namespace: Namespace, role: str, is_listed: bool
):
    assert namespace.is_listed(role) is is_listed


def test_setting_of_presence_roles_replaces_what_is_declared(settings):
    settings.REALTIME = {**settings.REALTIME, "PRESENCE_ROLES": ["admin"]}
    assert (HUB.is_listed("admin"), HUB.is_listed("attendant")) == (True, False)


# --- Kinds of rooms ----------------------------------------------------------------------------------


def test_rooms_are_of_the_kinds_that_are_registered(register: Register):
    assert not is_room("board:7")
    assert room_of_group("ops.board.7") is None
    register(HUB, OPS)
    assert is_room("board:7")
    assert not is_room("board:")
    assert not is_room("shelf:7")
    assert room_of_group(group_name("ops", BOARD.room("7"))) == "board:7"
    assert room_of_group("lab.board.7") is None  # which is not registered


@pytest.mark.parametrize(
    ("room", "has", "joins"),
    [
        ("board:7", True, True),
        ("user:7", True, False),
        ("presence:sales", True, False),
        ("thread:7", False, False),
    ],
)
def test_namespace_knows_its_rooms_and_which_are_joined(room: str, has: bool, joins: bool):
    assert (OPS.has_room(room), OPS.may_join(room)) == (has, joins)


@pytest.mark.parametrize(
    ("text", "is_name"),
    [("shelf:7", True), ("shelf", False), ("Shelf:7", False), (":7", False), ("a:b:c", False)],
)
def test_name_of_a_room_of_a_kind_that_there_is_not(text: str, is_name: bool):
    assert is_room_name(text) is is_name


async def test_policy_may_be_a_function_or_its_path(register: Register):
    async def even(principal: object, board_id: str) -> bool:
        return int(board_id) % 2 == 0

    namespace = replace(LAB, policies={"board": even})
    assert await namespace.allows(None, "board:2")
    assert not await namespace.allows(None, "board:3")
    assert await HUB.allows(None, "thread:1")


@pytest.mark.parametrize(("answer", "is_allowed"), [(True, True), (1, True), (0, False), (None, False)])
async def test_policy_answers_yes_or_no(answer: object, is_allowed: bool):
    async def policy(principal: object, board_id: str) -> object:
        return answer

    assert await replace(LAB, policies={"board": policy}).allows(None, "board:2") is is_allowed


async def _refuse(principal: object, board_id: str) -> bool:
    return False


@pytest.mark.parametrize("answer", ["false", ["7"], object(), replace])
async def test_policy_that_answers_anything_else_lets_no_user_in(answer: object):
    async def policy(principal: object, board_id: str) -> object:
        return answer

    with pytest.raises(TypeError, match="the policy of lab for board: expected True or False, got "):
        await replace(LAB, policies={"board": policy}).allows(None, "board:2")


async def test_policy_that_forgets_to_await_lets_no_user_in():
    started = []

    async def policy(principal: object, board_id: str) -> object:
        started.append(_refuse(principal, board_id))
        return started[0]

    with pytest.raises(TypeError, match="got coroutine"):
        await replace(LAB, policies={"board": policy}).allows(None, "board:2")
    started[0].close()


# --- What settings replace ---------------------------------------------------------------------------


def test_settings_replace_roles_and_policies(register: Register):
    register(HUB, OPS, OPS_ROLES=["boss"], HUB_THREAD_POLICY="portal.policy.own_threads")
    assert namespaces()["ops"].roles == ("boss",)
    assert namespaces()["hub"].policies == {"thread": "portal.policy.own_threads"}
    assert namespaces()["hub"].roles == HUB.roles
    assert roles() == {"attendant", "admin", "boss"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OPZ_ROLES", ["boss"], "OPZ_ROLES"),
        ("OPS_SHELF_POLICY", "a.b", "OPS_SHELF_POLICY"),
        ("OPS_THREAD_POLICY", "a.b", "HUB_THREAD_POLICY"),  # named among those there are
        ("OPS_ROLES", "boss", "OPS_ROLES"),
        ("OPS_ROLES", [7], "OPS_ROLES"),
        ("OPS_ROLES", [], "at least one role"),
    ],
)
def test_setting_that_replaces_nothing_is_refused(register: Register, name: str, value: object, said: str):
    register(HUB, OPS, **{name: value})
    with pytest.raises(ImproperlyConfigured, match=said):
        namespaces()
    assert said in errors()["realtime.E018"]


# --- Mistakes ----------------------------------------------------------------------------------------

WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "none": ((), "expected at least one"),
    "no namespace": (("hub",), "expected 'declared_here.N0' to be a Namespace, got str"),
    "a kind": ((BOARD,), "to be a Namespace, got RoomKind"),
    "twice": ((OPS, OPS), "'ops' is registered twice"),
    "name": ((replace(OPS, name="Ops"),), "expected a name of 1-16 characters"),
    "long name": ((replace(OPS, name="o" * 17),), "expected a name of 1-16 characters"),
    "reserved name": ((replace(OPS, name="metrics"),), "none of"),
    "name of a kind": ((replace(OPS, kinds=(RoomKind("my board"),)),), "kind 'my board'"),
    "no roles": ((replace(OPS, roles=()),), "expected at least one role"),
    "policy of no kind": ((replace(OPS, policies={"shelf": "a.b"}),), "got 'shelf'"),
    "policy of a kind that is not joined": (
        (replace(OPS, policies={"board": "a.b", "presence": "a.b"}),),
        "expected kinds that are joined",
    ),
    "no policy": ((replace(OPS, policies={}),), "expected one for the kind 'board'"),
    "two kinds of one name": (
        (OPS, replace(LAB, kinds=(RoomKind("board", is_joined=False),), policies={})),
        "another kind is called 'board'",
    ),
    "roles of another type": (
        (replace(OPS, roles="supervisor"),),
        "declared_here.N0: Expected `array`, got `str`",
    ),
    "name of another type": ((replace(OPS, name=None),), "got `null` - at `$.name`"),
    "one kind": ((replace(OPS, kinds=BOARD),), "at `$.kinds`"),
    "names of kinds": ((replace(OPS, kinds=("board",)),), "expected room kinds, got 'board'"),
    "presence of another type": ((replace(OPS, presence=True),), "at `$.presence`"),
    "text of roles": ((replace(OPS, presence_roles="supervisor"),), "at `$.presence_roles`"),
    "no initial rooms": (
        (replace(OPS, initial_rooms=None),),
        "expected a function of the principal, got None",
    ),
    "text of events": ((replace(OPS, client_events="board:point"),), "at `$.client_events`"),
    "one setting for two policies": (
        (
            replace(OPS, name="a_b", kinds=(RoomKind("c"),), policies={"c": "x.y"}, presence=Presence.NONE),
            replace(OPS, name="a", kinds=(RoomKind("b_c"),), policies={"b_c": "x.y"}, presence=Presence.NONE),
        ),
        "REALTIME['A_B_C_POLICY'] could mean two things",
    ),
    "two with unnamed grants": (
        (PORTAL, replace(LAB, has_unnamed_grants=True)),
        "expected one namespace at most",
    ),
    "team without groups": (
        (replace(LAB, presence=Presence.TEAM),),
        "expected the kind 'presence' among its kinds",
    ),
}


@pytest.mark.parametrize(("declared", "said"), WRONG.values(), ids=WRONG)
def test_wrong_declaration_is_found_at_start(register: Register, declared: tuple[object, ...], said: str):
    register(*declared)
    with pytest.raises(ImproperlyConfigured, match=re.escape(said)):
        namespaces()
    assert said in errors()["realtime.E018"]


def test_lists_and_names_are_taken_for_what_they_stand_for(register: Register):
    register(replace(OPS, roles=["supervisor"], presence="team", client_events={"board:point"}))
    assert namespaces()["ops"] == replace(
        OPS, roles=("supervisor",), client_events=frozenset({"board:point"})
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def (", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("\nraise KeyError('boom')", "KeyError: 'boom' (broken.py, line 2)"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_mistake_in_a_module_of_the_product_is_one_sentence(
    settings, tmp_path, monkeypatch, text: str, said: str
):
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for setting, id in {
        "CLAIMS": "realtime.E017",
        "HUB_THREAD_POLICY": "realtime.E005",
        "NAMESPACES": "realtime.E018",
        "EVENTS": "realtime.E004",
    }.items():
        path: object = "broken.f" if setting in {"CLAIMS", "HUB_THREAD_POLICY"} else ["broken.f"]
        with settings_of(settings, setting, ["broken"] if setting == "EVENTS" else path):
            assert said in errors()[id].replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("key", sorted(set(re.findall(r"key\('(\w+)', ", APPLY.read_text()))))
def test_no_namespace_has_the_name_of_a_presence_key(register: Register, key: str):
    """Its keys begin `{realtime:presence}:<namespace>:`, those of the hub `{realtime:presence}:<key>:`."""
    register(replace(OPS, name=key))
    with pytest.raises(ImproperlyConfigured, match="none of"):
        namespaces()


@pytest.mark.parametrize("path", ["no.such.NAMESPACE", "realtime.namespaces.hub.NONE", "hub"])
def test_path_that_leads_nowhere_is_found_at_start(settings, path: str):
    settings.REALTIME = {**settings.REALTIME, "NAMESPACES": [path]}
    assert path in errors()["realtime.E018"]


@pytest.mark.parametrize(
    ("declared", "id", "said"),
    [
        (replace(OPS, policies={"board": "tests.ops.policy.none"}), "realtime.E005", "OPS_BOARD_POLICY"),
        (replace(OPS, policies={"board": "tests.ops.policy.__doc__"}), "realtime.E005", "got str"),
        (
            replace(OPS, policies={"board": is_room}),
            "realtime.E005",
            "expected an async function, got realtime.protocol.rooms.is_room",
        ),
        (replace(OPS, consumer="tests.ops.none"), "realtime.E019", "cannot import"),
        (replace(OPS, consumer=dict), "realtime.E019", "expected a NamespaceConsumer"),
        (replace(OPS, consumer=NamespaceConsumer), "realtime.E021", "NamespaceConsumer, keeps no presence"),
        (replace(LAB, presence=Presence.CUSTOMERS), "realtime.E021", "NamespaceConsumer, keeps no presence"),
        (replace(OPS, events=("no.such.events",)), "realtime.E004", "namespace 'ops': cannot import"),
        (replace(LAB, client_events=frozenset({"board:paint"})), "realtime.E004", "'board:paint'"),
    ],
)
def test_what_a_namespace_names_must_be_there(register: Register, declared: Namespace, id: str, said: str):
    register(HUB, PORTAL, declared)
    assert said in errors()[id]


def test_listed_role_that_no_namespace_has_is_found_at_start(settings):
    settings.REALTIME = {**settings.REALTIME, "PRESENCE_ROLES": ["attendant", "janitor"]}
    assert "'janitor'" in errors()["realtime.E020"]


def test_example_of_the_docstring_is_one(register: Register):
    board = RoomKind("board")
    register(
        HUB,
        PORTAL,
        Namespace(
            name="ops",
            roles=("supervisor",),
            kinds=(board,),
            policies={"board": "tests.ops.policy.boards_of_ops"},
            events=("tests.ops.events",),
        ),
    )
    assert {*kinds().values()} >= {board, namespaces()["ops"].kind("user")}
    assert set(errors()) == set()


# --- The kernel --------------------------------------------------------------------------------------


def test_kernel_names_neither_of_our_namespaces():
    # The wiring and the examples of the publisher name them; the client and the test tools are other programs.
    others = {"namespaces", "settings", "cli.py", "publisher.py", "client", "testing"}
    default = re.escape(f"    namespaces: tuple[str, ...] = {Conf().namespaces!r}\n".replace("'", '"'))
    for path in (ROOT / "realtime").rglob("*.py"):
        if others.isdisjoint(path.relative_to(ROOT).parts):
            code, defaults = re.subn(default, "", path.read_text())
            assert defaults == (path.name == "conf.py")
            assert not re.search(r"\b(hub|portal)\b", code, re.IGNORECASE), path


def test_namespaces_that_ship_with_the_project_are_registered_by_default(settings):
    settings.REALTIME = {}
    assert [*namespaces()] == ["hub", "portal"]
