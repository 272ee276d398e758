"""Two socket servers behind a reverse proxy, configured as in deploy/."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGKILL
from types import SimpleNamespace

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from realtime.auth.credentials import MAX_TOKEN_LENGTH
from realtime.server.keepalive import PING_SECONDS
from tests.e2e.harness import ROOT, Process, Stack, eventually, free_port
from tests.faults.world import World

DEPLOY = ROOT / "deploy"
Change = Callable[[str], str]
Start = Callable[[Sequence[int], Path, Change], Process]


def as_it_is(text: str) -> str:
    return text


def configured(file: Path, ports: Sequence[int], change: Change) -> Path:
    """A configuration of deploy/ in another folder, with the ports of two servers and of the proxy."""
    text = change((DEPLOY / file.name).read_text())
    for there, here in zip((8001, 8002, 8080), ports, strict=True):
        assert f":{there}" in text
        text = re.sub(rf":{there}\b", f":{here}", text)
    file.write_text(text)
    return file


def haproxy(ports: Sequence[int], directory: Path, change: Change) -> Process:
    file = configured(directory / "haproxy.cfg", ports, change)
    binary = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert binary, "needs the Debian package haproxy"
    return Process("haproxy", [binary, "-db", "-f", str(file)], {}, directory / "haproxy.log")


def nginx(ports: Sequence[int], directory: Path, change: Change) -> Process:
    file = configured(directory / "nginx.conf", ports, change)
    binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert binary, "needs the Debian package nginx-light"
    subprocess.run([binary, "-t", "-p", str(directory), "-c", str(file)], check=True, capture_output=True)
    command = [binary, "-p", str(directory), "-c", str(file), "-g", "daemon off; pid nginx.pid;"]
    return Process("nginx", command, {}, directory / "nginx.log")


@asynccontextmanager
async def proxied(
    start: Start, world: World, directory: Path, change: Change = as_it_is
) -> AsyncIterator[int]:
    """A proxy in front of two socket servers; yields its port."""
    port = free_port()
    proxy = start([*world.ports[:2], port], directory, change)
    try:
        await eventually(lambda: _is_ready(world.stack, port))
        yield port
    finally:
        proxy.stop()


async def _is_ready(stack: Stack, port: int) -> bool:
    token = ("Authorization", f"Bearer {stack.token()}")
    try:
        answer = await stack.http("GET", "/hub/", [token], port=port)
    except OSError:
        return False
    return answer.status == 204 or b"at_capacity" in answer.body  # by a server, too


# --- What breaks something ------------------------------------------------------------------------------


@asynccontextmanager
async def behind_both(world: World, directory: Path, **env: str) -> AsyncIterator[tuple[int, int]]:
    """Two socket servers behind an HAProxy and an nginx; yields the ports of these."""
    await asyncio.to_thread(world.start, world.ports[:2], **env)
    async with proxied(haproxy, world, directory) as one, proxied(nginx, world, directory) as other:
        yield one, other


async def test_people_behind_a_proxy_go_on_with_the_other_server_when_one_is_killed(
    world: World, tmp_path: Path, record_property
):
    async with behind_both(world, tmp_path) as ports:
        for port in ports:
            await world.gather([port], count=4)
        async with world.traffic(after=2):
            world.sockets[0].signal(SIGKILL)
        await world.nothing_happened(record_property)
        for people in (world.people[:4], world.people[4:]):
            # Both servers had connections of each proxy.
            assert any(person.endings.total() for person in people)


async def test_no_token_is_in_the_log_of_a_proxy(world: World, tmp_path: Path):
    """For each way to send a token, whether it is accepted, refused, or both servers are dead."""
    async with behind_both(world, tmp_path, REALTIME_QUERY_TOKEN="1") as ports:

        async def come_in_every_way(port: int) -> list[int]:
            statuses = []
            for way in ("header", "protocol", "query"):
                token = world.stack.token()
                path = f"/hub/?token={token}" if way == "query" else "/hub/"
                protocol = ("Sec-WebSocket-Protocol", f"realtime.v1, bearer.{token}")
                answer = await world.stack.handshake(
                    path,
                    [protocol] if way == "protocol" else [],
                    token=token if way == "header" else None,
                    port=port,
                )
                statuses.append(answer.status)
            return statuses

        for port in ports:
            assert await come_in_every_way(port) == [101, 101, 101]
            odd = [("Sec-WebSocket-Protocol", f"bearer.{world.stack.token()}\1")]
            await world.stack.handshake(f"/hub/?token={world.stack.token()}", odd, port=port)
        for server in world.sockets:
            server.signal(SIGKILL)
            server.wait()
        for port in ports:
            assert not {101} & set(await come_in_every_way(port))
    for name in ("haproxy", "nginx"):
        log = (tmp_path / f"{name}.log").read_text()
        assert "/hub/" in log or "bad request" in log
        assert not any(token.rpartition(".")[2] in log for token in world.stack.tokens)


async def test_address_of_a_client_is_the_one_that_the_proxy_saw(world: World, tmp_path: Path):
    """A header that the client makes up does not count. The limit of handshakes tells addresses apart."""
    env = {"TRUSTED_PROXIES": "127.0.0.1", "REALTIME_LIMIT_ADDRESS_HANDSHAKES": "0.01"}
    async with behind_both(world, tmp_path, **env) as ports:

        async def status(port: int, address: str, said: str) -> int:
            headers = {"Authorization": f"Bearer {world.stack.token()}", "X-Forwarded-For": said}
            url = world.stack.url("hub", port=port)
            try:
                async with connect(url, additional_headers=headers, local_addr=(address, 0)):
                    return 101
            except InvalidStatus as refused:
                return refused.response.status_code

        for number, port in enumerate(ports):
            address, another = f"127.0.{number}.2", f"127.0.{number}.3"
            first = [await status(port, address, f"203.0.113.{said}") for said in range(6)]
            assert first[0] == 101
            assert first[-1] == 503
            assert await status(port, another, "203.0.113.1") == 101


# --- What breaks nothing -----------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("start", [haproxy, nginx], ids=lambda start: start.__name__)


@pytest.fixture(scope="module")
def shared(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two socket servers."""
    world = World(tmp_path_factory.mktemp("proxies"), SimpleNamespace(url=redis_url))
    with world.stack:
        world.start(world.ports[:2])
        yield world


INSIDE = ("/metrics", "/healthz", "/readyz", "/asyncapi.json")


def spellings(path: str) -> list[str]:
    """Ways to write a path that a rule may not know, and a server might understand."""
    name = path.removeprefix("/")
    return [
        *(
            path,
            f"{path}/",
            f"{path}?x=1",
            f"{path}#x",
            f"//{name}",
            f"/./{name}",
            f"/x/../{name}",
            f"/{name};x",
        ),
        *(
            f"/%{ord(name[0]):02x}{name[1:]}",
            f"/{name[:-1]}%{ord(name[-1]):02X}",
            f"/%2e/{name}",
            f"/%2f{name}",
        ),
        *(f"/{name.upper()}", f"/hub/../{name}", f"/hub/..%2f{name}", f"/hub/%2e%2e/{name}", f"/hub{path}"),
        *(
            f"/hub/%0a{name}",
            f"/hub/%0a/../../{name}",
            f"http://127.0.0.1{path}",
            f"http://127.0.0.1/hub/..{path}",
        ),
    ]


@BOTH
async def test_probes_metrics_and_the_document_stay_inside_however_they_are_spelt(
    shared: World, tmp_path: Path, start: Start
):
    async with proxied(start, shared, tmp_path) as port:
        for path in INSIDE:
            assert (await shared.stack.http("GET", path, port=shared.ports[0])).status == 200
            for spelling in spellings(path):
                answer = await shared.stack.http("GET", spelling, port=port)
                assert answer.status in {400, 404}, (spelling, answer.body[:200])


@BOTH
@pytest.mark.parametrize("source", ["Authorization", "Sec-WebSocket-Protocol"])
async def test_largest_token_comes_through_with_cookies_beside_it(
    shared: World, tmp_path: Path, start: Start, source: str
):
    async with proxied(start, shared, tmp_path) as port:
        token = shared.stack.sign_long(MAX_TOKEN_LENGTH)
        headers = [("Cookie", "x=" + "y" * 4000)]
        if source == "Authorization":
            headers.append((source, f"Bearer {token}"))
            assert (await shared.stack.http("GET", "/hub/", headers, port=port)).status == 204
        else:
            headers.append((source, f"realtime.v1, bearer.{token}"))
        assert (await shared.stack.handshake("/hub/", headers, port=port)).status == 101


@BOTH
async def test_tls_ends_at_the_proxy_with_the_lines_that_are_prepared_for_it(
    shared: World, tmp_path: Path, start: Start
):
    certificate, tls_port = tmp_path / "certificate.pem", free_port()
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run(
        [*make, "-keyout", certificate, "-out", tmp_path / "public.pem"], check=True, capture_output=True
    )
    with certificate.open("a") as both:
        both.write((tmp_path / "public.pem").read_text())

    def with_tls(text: str) -> str:
        text = re.sub(r"(?m)^( *)#(bind|listen|ssl_protocols)\b", r"\1\2", text)
        text = re.sub(r"\S*certificate\.pem", str(certificate), text)
        return text.replace(":8443", f":{tls_port}")

    context = ssl.create_default_context(cafile=tmp_path / "public.pem")
    context.check_hostname = False
    async with proxied(start, shared, tmp_path, with_tls):
        headers = {"Authorization": f"Bearer {shared.stack.token()}"}
        url = f"wss://127.0.0.1:{tls_port}/hub/"
        async with connect(url, additional_headers=headers, ssl=context) as websocket:
            assert "connection:ready" in str(await websocket.recv())


# --- Sticky, for who wants it --------------------------------------------------------------------------


async def _stay_on_one(world: World, port: int) -> None:
    async def has(*counts: int) -> bool:
        return sorted([await world.stack.connections(each) for each in world.ports[:2]]) == [*counts]

    headers = {"Authorization": f"Bearer {world.stack.token()}"}
    url = world.stack.url("hub", port=port)
    await eventually(lambda: has(0, 0))  # nothing is left of the test before
    async with connect(url, additional_headers=headers) as first:
        cookie = first.response.headers.get("Set-Cookie", "").partition(";")[0] if first.response else ""
        again = {**headers, "Cookie": cookie} if cookie else headers
        others = [await connect(url, additional_headers=again) for _ in range(4)]
        try:
            await eventually(lambda: has(0, 5))
        finally:
            for other in others:
                await other.close()


async def test_sticky_backend_of_haproxy_sends_a_browser_where_it_was(shared: World, tmp_path: Path):
    def sticky(text: str) -> str:
        return text.replace("default_backend sockets", "default_backend sticky")

    async with proxied(haproxy, shared, tmp_path, sticky) as port:
        await _stay_on_one(shared, port)


async def test_ip_hash_of_nginx_sends_an_address_where_it_was(shared: World, tmp_path: Path):
    def sticky(text: str) -> str:
        return text.replace("least_conn;", "ip_hash;")

    async with proxied(nginx, shared, tmp_path, sticky) as port:
        await _stay_on_one(shared, port)


# --- Time-outs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "time_out"),
    [
        ("haproxy.cfg", r"timeout tunnel\s+(\d+)s"),
        ("nginx.conf", r"proxy_read_timeout (\d+)s"),
        ("nginx.conf", r"proxy_send_timeout (\d+)s"),
    ],
)
def test_quiet_connection_is_not_cut_between_two_pings(file: str, time_out: str):
    """Ours come every `PING_SECONDS`; two may be lost, and a client's heartbeats do not matter."""
    [seconds] = re.findall(time_out, (DEPLOY / file).read_text())
    assert int(seconds) > 3 * PING_SECONDS
