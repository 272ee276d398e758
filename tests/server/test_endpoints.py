"""Plain HTTP on the socket server's port."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any
from unittest.mock import Mock

import pytest
from prometheus_client import REGISTRY

from realtime.asgi import application
from realtime.auth.credentials import MAX_TOKEN_LENGTH
from realtime.auth.issuing import issue
from realtime.connections import admission
from realtime.server import readiness
from realtime.spec import asyncapi
from tests.inprocess import Connection, Refusal, http, refusal

pytestmark = pytest.mark.usefixtures("process")


# --- Paths and methods -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/asyncapi.json"])
async def test_slash_at_the_end_makes_no_difference(path: str):
    assert (await http(path)).status == 200
    assert (await http(f"{path}/")).status == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/nothing", "/healthz/x", "/healthz//", "//healthz", "/Healthz", "/hub/healthz", "/./metrics"),
        "/hub/../metrics",
    ],
)
async def test_other_paths_are_not_found(path: str):
    answer = await http(path)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (404, "not_found")


async def test_page_may_read_that_there_is_no_namespace_at_a_path(settings):
    """So that its client tells a mistaken path, which is final, from the 404 of a proxy, which may pass."""
    settings.REALTIME = {**settings.REALTIME, "ALLOWED_ORIGINS": ["https://a.test"]}
    answer = await http("/hubb/", Origin="https://a.test")
    assert answer.headers["access-control-allow-origin"] == "https://a.test"


async def ask(path: str, method: str = "GET", *, receive: Any = None, **scope: Any) -> dict[str, Any]:
    """The start of the answer to a request as a server hands it over."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    request: Any = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [],
        **scope,
    }
    await application(request, receive, send)  # type: ignore[arg-type]
    return sent[0]


@pytest.mark.parametrize(
    "raw_path", [b"/%6detrics", b"/metric%73", b"/%2fmetrics", b"/healthz%2F", b"/metrics;x"]
)
async def test_path_has_one_spelling_so_that_a_proxy_can_keep_it_inside(raw_path: bytes):
    assert (await ask("/metrics", raw_path=raw_path))["status"] == 404


@pytest.mark.parametrize(
    ("path", "root", "status"),
    [
        ("/app/healthz", "/app", 200),  # with the prefix (uvicorn), as the ASGI specification has it
        ("/app/healthz", "/app/", 200),
        ("/healthz", "/app", 200),  # without it (daphne)
        ("/app/healthz", "", 404),
        ("/apphealthz", "/app", 404),
        ("/app/app/healthz", "/app", 404),
    ],
)
async def test_prefix_at_which_the_server_serves_is_no_part_of_the_path(path: str, root: str, status: int):
    assert (await ask(path, raw_path=path.encode(), root_path=root))["status"] == status


async def test_prefix_that_a_client_names_leads_nowhere():
    headers = [(b"daphne-root-path", b"/app")]
    assert (await ask("/app/metrics", root_path="/app", headers=headers))["status"] == 404


async def test_path_as_it_was_sent_is_compared_without_the_query():
    assert (await ask("/healthz", raw_path=b"/healthz?x=1"))["status"] == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/asyncapi.json"])
async def test_only_reading_is_allowed(path: str):
    assert (await http(path, "HEAD")).status == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = await http(path, method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/nothing", "/hub/"])
async def test_body_of_a_request_is_never_asked_for(method: str, path: str):
    async def receive() -> None:
        raise AssertionError("the body was asked for")

    assert (await ask(path, method, receive=receive))["status"] in {200, 401, 404, 405}


async def test_answer_without_content_has_no_length():
    """RFC 9110, 8.6."""
    answer = await http("/hub/", Authorization=f"Bearer {issue(user_id='7', role='attendant')}")
    assert (answer.status, answer.headers.get("content-length")) == (204, None)


# --- Readiness ---------------------------------------------------------------------------------------


@pytest.fixture
def proofs(monkeypatch) -> list[list[str]]:
    """What the next proofs find; each is taken away when it was made."""
    found: list[list[str]] = []

    async def prove() -> list[str]:
        await asyncio.sleep(0)
        return found.pop(0)

    monkeypatch.setattr(readiness, "prove", prove)
    return found


async def test_all_requests_share_one_proof_while_it_counts(proofs: list[list[str]], monkeypatch):
    monkeypatch.setattr(readiness, "PROVEN_SECONDS", 3600.0)
    proofs += [["first"], ["second"]]
    assert await asyncio.gather(*(readiness.reasons_not_ready() for _ in range(100))) == 100 * [["first"]]
    assert await readiness.reasons_not_ready() == ["first"]
    monkeypatch.setattr(readiness, "PROVEN_SECONDS", 0.0)
    assert await readiness.reasons_not_ready() == ["second"]
    assert proofs == []


async def test_proof_outlives_the_request_that_began_it(proofs: list[list[str]]):
    proofs += [["first"]]
    impatient = asyncio.create_task(readiness.reasons_not_ready())
    await asyncio.sleep(0)
    impatient.cancel()
    assert await readiness.reasons_not_ready() == ["first"]


async def test_document_is_rendered_once(monkeypatch):
    made: list[None] = []
    document = asyncapi.document
    monkeypatch.setattr(asyncapi, "document", lambda: made.append(None) or document())
    asyncapi.asyncapi_json.cache_clear()
    bodies = [(await http("/asyncapi.json")).body for _ in range(3)]
    assert len(set(bodies)) == len(made) == 1


# --- Limits ------------------------------------------------------------------------------------------


_numbers = itertools.count()


@pytest.fixture
def address() -> str:
    """An address that has not sent a request before."""
    return f"198.18.0.{next(_numbers)}"


@pytest.fixture
def another() -> str:
    """Another one."""
    return f"198.18.1.{next(_numbers)}"


@pytest.fixture
def limits(settings):
    """Limits that are so slow to recover that no time passes for them."""

    def limit(**values: float) -> None:
        settings.REALTIME = {
            **settings.REALTIME,
            "LIMITS": {**values, "ADDRESS_HANDSHAKES": 0.001},
            "TRUSTED_PROXIES": ["10.0.0.1"],
        }

    limit()
    return limit


async def get(path: str, address: str) -> int:
    return (await through_proxy(path, address))["status"]


async def through_proxy(path: str, address: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    forwarded = (b"x-forwarded-for", address.encode())
    return await ask(path, client=("10.0.0.1", 5), headers=[forwarded, *headers])


async def handshake(address: str) -> Refusal | str | None:
    token = issue(user_id="7", role="attendant")
    headers = [(b"x-forwarded-for", address.encode()), (b"authorization", f"Bearer {token}".encode())]
    connection = Connection("/hub/", headers=headers)
    connection.communicator.scope["client"] = ("10.0.0.1", 5)
    try:
        return await connection.handshake()
    finally:
        await connection.disconnect()


PATHS = ["/healthz", "/readyz", "/metrics", "/asyncapi.json", "/hub/", "/nothing"]


@pytest.mark.parametrize("path", PATHS)
async def test_requests_of_one_address_are_limited_and_keep_no_other_address_out(
    limits, address: str, another: str, path: str
):
    first, second = await get(path, address), await get(path, address)
    assert (first != 503, second) == (True, 503)
    assert await get(path, another) != 503


async def test_plain_requests_and_handshakes_share_the_limit_of_an_address(
    limits, address: str, another: str
):
    assert await get("/healthz", address) == 200
    answer = await handshake(address)
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.code) == (503, "at_capacity")
    assert not isinstance(await handshake(another), Refusal)
    assert await get("/healthz", another) == 503


async def test_refused_request_says_when_to_try_again_and_ends_the_connection(limits, address: str):
    await get("/healthz", address)
    refused = await through_proxy("/healthz", address)
    headers = dict(refused["headers"])
    assert int(headers[b"retry-after"]) > 0
    assert headers[b"connection"] == b"close"


async def test_page_may_read_that_its_address_is_refused(limits, address: str, settings):
    settings.REALTIME = {**settings.REALTIME, "ALLOWED_ORIGINS": ["https://a.test"]}
    await get("/hub/", address)
    refused = await through_proxy("/hub/", address, (b"origin", b"https://a.test"))
    assert refused["status"] == 503
    assert dict(refused["headers"])[b"access-control-allow-origin"] == b"https://a.test"


async def test_what_an_address_is_refused_takes_nothing_from_the_others(limits, address: str, another: str):
    limits(HANDSHAKES=10)
    assert not isinstance(await handshake(address), Refusal)
    for _ in range(20):  # more than the whole process may take
        assert isinstance(await handshake(address), Refusal)
        assert await get("/hub/", address) == 503
    assert not isinstance(await handshake(another), Refusal)


async def test_refused_handshake_is_counted_and_its_head_is_not_examined(limits, address, monkeypatch):
    await get("/healthz", address)
    for name in ("authorize", "credential", "check_origin"):
        monkeypatch.setattr(f"realtime.connections.handshake.{name}", Mock(side_effect=AssertionError))
    before = refused_so_far()
    assert isinstance(await handshake(address), Refusal)
    assert refused_so_far() == before + 1


def refused_so_far() -> float:
    labels = {"namespace": "hub", "result": "at_capacity"}
    return REGISTRY.get_sample_value("realtime_handshakes_total", labels) or 0.0


async def test_flood_of_refused_requests_is_one_line_in_the_log(limits, address: str, caplog, monkeypatch):
    caplog.set_level("INFO")
    await get("/healthz", address)
    monkeypatch.setattr(admission, "LOG_SECONDS", 0.0)
    await get("/healthz", address)
    monkeypatch.setattr(admission, "LOG_SECONDS", 3600.0)
    for _ in range(100):
        await get("/healthz", address)
    assert [record.getMessage() for record in caplog.records].count("requests refused") == 1


def test_refusal_is_an_answer_in_http():
    said = admission.response(admission.at_capacity(), [(b"date", b"today")])
    head, _, body = said.partition(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    assert first == b"HTTP/1.1 503 Service Unavailable"
    assert {b"date: today", b"connection: close", b"content-length: %d" % len(body)} <= set(headers)
    assert body == admission.at_capacity().body


# --- One rule for tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize("more", [0, 1])
async def test_length_of_a_token_is_judged_the_same_by_verdict_and_handshake(more: int):
    token = "x" * (MAX_TOKEN_LENGTH + more)
    verdict = (await http("/hub/", Authorization=f"Bearer {token}")).json["error"]
    answer = await refusal("/hub/", headers=[(b"authorization", f"Bearer {token}".encode())])
    assert verdict == answer.error
    assert ("longer than" in verdict["message"]) is bool(more)
