"""The system checks of the project, by side: what a process says of its settings when it starts, and for production."""

from __future__ import annotations

from django.core.checks import CheckMessage

from realtime.checks import collisions, publishing, server, tokens, web

STARTUP = {
    "publisher": (collisions.check_collisions, publishing.check_settings),
    "sockets": (
        collisions.check_collisions,
        publishing.check_settings,
        server.check_server,
        tokens.check_tokens,
    ),
    "web": (collisions.check_collisions, publishing.check_settings, tokens.check_tokens),
}
PRODUCTION = {
    "publisher": (publishing.check_production,),
    "sockets": (
        publishing.check_production,
        server.check_server_in_production,
        tokens.check_tokens_in_production,
    ),
    "web": (
        publishing.check_production,
        tokens.check_tokens_in_production,
        web.check_web_in_production,
    ),
}


def startup(side: str = "sockets") -> list[CheckMessage]:
    return [message for check in STARTUP[side] for message in check(None)]


def ids() -> set[str]:
    return {str(message.id) for message in startup()}


def production(side: str = "sockets") -> list[CheckMessage]:
    return [message for check in PRODUCTION[side] for message in check(None)]
