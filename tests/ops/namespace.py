"""The namespaces: of the supervisors, who see each other, and of the researchers, who do not."""

from __future__ import annotations

from realtime.protocol.ids import is_group
from realtime.protocol.namespaces import PRESENCE, Namespace, Presence, RoomKind
from realtime.protocol.rooms import presence_rooms

BOARD = RoomKind("board")
DESK = RoomKind("desk", is_id=is_group)

OPS = Namespace(
    name="ops",
    roles=("supervisor", "admin"),
    kinds=(PRESENCE, BOARD),
    policies={"board": "tests.ops.policy.boards_of_ops"},
    initial_rooms=presence_rooms,
    presence=Presence.TEAM,
    presence_roles=("supervisor",),
    events=("presence.events", "tests.ops.events"),
    consumer="presence.connection.TeamPresence",
)

LAB = Namespace(
    name="lab",
    roles=("researcher",),
    kinds=(BOARD, DESK),
    policies=dict.fromkeys(("board", "desk"), "tests.ops.policy.boards_of_lab"),
    client_events=frozenset({"board:point"}),
    events=("tests.ops.events",),
)
