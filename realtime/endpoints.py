"""Plain HTTP on the socket server's port: health, metrics, and why a handshake would be refused."""

from __future__ import annotations

import asyncio
import logging

from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.urls import re_path
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError

from realtime import handshake, layout, revocation
from realtime.asyncapi import asyncapi_json
from realtime.authentication import headers_of
from realtime.exposition import exposition, may_read
from realtime.node import Node
from realtime.redis import client
from realtime.refusals import RefusalCode
from realtime.rooms import HUB, PORTAL

READY_WITHIN = 0.8
"""Seconds that a readiness answer may take."""


def _without_request(record: logging.LogRecord) -> bool:
    """Django attaches the request to what it logs, whose `repr` has the query string: perhaps a token."""
    vars(record).pop("request", None)
    return True


logging.getLogger("django.request").addFilter(_without_request)


async def healthz(request: HttpRequest) -> HttpResponse:
    """The process lives. Nothing else."""
    return JsonResponse({"status": "alive"})


async def readyz(request: HttpRequest) -> HttpResponse:
    """The process can deliver: Redis answers, and a message sent through it came back through our subscription."""
    reasons = await reasons_not_ready()
    return JsonResponse(
        {"status": "unavailable" if reasons else "ready", "reasons": reasons}, status=503 if reasons else 200
    )


async def reasons_not_ready() -> list[str]:
    """Why this process cannot deliver now; empty when it can."""
    if Node.current().is_draining:
        return ["draining"]

    async def ping() -> None:
        async with asyncio.timeout(READY_WITHIN):
            await client().ping()
            await layout.claim()

    answers = await asyncio.gather(ping(), Node.current().probe(READY_WITHIN), return_exceptions=True)
    names = ("redis does not answer", "a probe did not come back through the subscription")
    reasons = []
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, layout.OtherLayout):
            reasons.append(str(answer))
        elif isinstance(answer, RedisError | OSError):
            reasons.append(name)
        elif isinstance(answer, BaseException):
            raise answer
    return list(dict.fromkeys(reasons))


async def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus' text format; with `METRICS_TOKEN` set only for who bears it."""
    if not may_read(request.headers.get("Authorization", "")):
        return HttpResponse(status=401, headers={"WWW-Authenticate": "Bearer"})
    return HttpResponse(exposition(), content_type=CONTENT_TYPE_LATEST)


async def asyncapi(request: HttpRequest) -> HttpResponse:
    """The protocol as an AsyncAPI document. Nothing in it is a secret: any page may show it."""
    headers = {"Access-Control-Allow-Origin": "*"}
    return HttpResponse(asyncapi_json(), content_type="application/json", headers=headers)


async def nothing_here(request: HttpRequest) -> HttpResponse:
    """404, without the page that Django makes with DEBUG on: it looks at headers that may be anything."""
    return HttpResponse(status=404)


async def verdict(request: HttpRequest, namespace: str) -> HttpResponse:
    """204 if a WebSocket handshake with these headers would be accepted now, else its refusal.

    For browsers, which cannot see why a handshake was refused; so it speaks CORS with the allowed origins.
    """
    origins = headers_of(request.scope, b"origin")  # type: ignore[attr-defined]
    if request.method == "OPTIONS":
        response = HttpResponse(status=204)
        response["Access-Control-Allow-Methods"] = "GET"
        response["Access-Control-Allow-Headers"] = "Authorization"
        response["Access-Control-Max-Age"] = "600"
    elif request.method in {"GET", "HEAD"}:
        response = await _verdict(request, namespace)
    else:
        response = HttpResponseNotAllowed(["GET", "OPTIONS"])
    response["Vary"] = "Origin"
    if len(origins) == 1 and handshake.is_allowed_origin(origins[0]):
        response["Access-Control-Allow-Origin"] = origins[0]
        response["Access-Control-Expose-Headers"] = "Retry-After"
    return response


async def _verdict(request: HttpRequest, namespace: str) -> HttpResponse:
    try:
        principal = await handshake.judge(request.scope, namespace)  # type: ignore[attr-defined]
        try:
            async with asyncio.timeout(READY_WITHIN):
                if await revocation.is_revoked(principal):
                    raise handshake.Refused(RefusalCode.TOKEN_INVALID, "the token was revoked")
        except (RedisError, OSError) as error:
            raise handshake.unavailable() from error
    except handshake.Refused as refused:
        return HttpResponse(
            refused.body, status=refused.status, content_type="application/json", headers=refused.headers
        )
    return HttpResponse(status=204, headers={"Cache-Control": "no-store"})


urlpatterns = [
    re_path(r"^healthz$", healthz),
    re_path(r"^readyz$", readyz),
    re_path(r"^metrics$", metrics),
    re_path(r"^asyncapi\.json$", asyncapi),
    re_path(r"^hub/?$", verdict, {"namespace": HUB}),
    re_path(r"^portal/?$", verdict, {"namespace": PORTAL}),
    re_path(r"", nothing_here),
]
