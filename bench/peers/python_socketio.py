"""python-socketio as in its documentation. Runs in an environment of its own."""

from __future__ import annotations

import os
from typing import Any

import jwt
import socketio

KEY = os.environ["BENCH_KEY"]

server = socketio.AsyncServer(
    async_mode="asgi",
    client_manager=socketio.AsyncRedisManager(f"unix://{os.environ['BENCH_REDIS']}"),
    transports=["websocket"],
    http_compression=False,
)
application = socketio.ASGIApp(server)


@server.event
async def connect(sid: str, environ: dict[str, Any], auth: dict[str, str]) -> None:
    try:
        user = jwt.decode(auth["token"], KEY, ["HS256"])
    except jwt.InvalidTokenError as error:
        raise socketio.exceptions.ConnectionRefusedError("token_invalid") from error
    await server.save_session(sid, user)
    await server.enter_room(sid, f"user:{user['user_id']}")


@server.event
async def join(sid: str, data: dict[str, str]) -> dict[str, str]:
    user = await server.get_session(sid)
    if data["thread_id"] not in user["threads"]:
        return {"error": "forbidden"}
    await server.enter_room(sid, f"thread:{data['thread_id']}")
    return {"status": "ok"}


@server.event
async def typing(sid: str, data: dict[str, Any]) -> None:
    room = f"thread:{data['thread_id']}"
    if room not in server.rooms(sid):
        return
    user = await server.get_session(sid)
    await server.emit(
        "thread:typing",
        {
            "thread_id": data["thread_id"],
            "user_id": user["user_id"],
            "name": user["name"],
            "typing": data["typing"],
        },
        room=room,
        skip_sid=sid,
    )
