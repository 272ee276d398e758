"""Options in REDIS_URL: every process works with those that are permitted, over every kind of connection."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e.harness import Stack, eventually, unique
from tests.servers import HOST, Server

OPTIONS = (
    "socket_timeout=4&socket_connect_timeout=4&max_connections=3&timeout=4&health_check_interval=7"
    "&client_name=ours&db=0&protocol=2"
)


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis")])
    today = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - dt.timedelta(1))
        .not_valid_after(today + dt.timedelta(1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "redis.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


@contextlib.contextmanager
def behind_tls(port: int, certificate: Path) -> Iterator[int]:
    """A port that speaks TLS for a server that can't, from a thread of its own."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    loop = asyncio.new_event_loop()
    serving = threading.Thread(target=loop.run_forever)
    serving.start()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        except asyncio.CancelledError:  # at the end, when nothing waits for its peer to close
            writer.transport.abort()
            raise
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(HOST, port)
        await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    server = run(asyncio.start_server(serve, HOST, 0, ssl=context))
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        serving.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.1))
        server.close()
        loop.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("redis") / "server") as server:
        yield server


@pytest.fixture(
    scope="module",
    params=["redis", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rediss", "unix"))],
)
def url(
    request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """With every option that fits the scheme."""
    if request.param == "unix":
        yield f"{server.url}?{OPTIONS}"
    elif request.param == "redis":
        yield f"redis://{HOST}:{server.port}?{OPTIONS}&socket_keepalive=1"
    else:
        file = certificate(tmp_path_factory.mktemp("tls"))
        with behind_tls(server.port, file) as port:
            tls = f"ssl_ca_certs={file}&ssl_check_hostname=1&ssl_cert_reqs=required"
            yield f"rediss://{HOST}:{port}/0?{OPTIONS}&{tls}"


def subscribers(server: Server) -> set[str]:
    """What the clients are called that have subscribed to something."""
    clients = [
        dict(field.partition("=")[::2] for field in line.split())
        for line in server.call("CLIENT", "LIST").decode().splitlines()
    ]
    return {client["name"] for client in clients if client["sub"] != "0"}


async def test_every_process_works_with_the_options_that_are_permitted(
    url: str, server: Server, tmp_path: Path
):
    with Stack(tmp_path, url) as stack:
        user, thread = unique("u"), unique("th")
        stack.manage("migrate", "--verbosity", "0")
        stack.start_all().start("runrecorder")
        async with stack.client("hub", user_id=user) as client:
            await client.call("join:thread", {"thread_id": thread})
            data = json.dumps({"thread_id": thread, "message_id": 1})
            stack.manage("publish", "thread:message", data)
            await client.expect("thread:message", message_id="1")
            stack.publish("chat:ended", {"thread_id": thread})
            await client.expect("chat:ended", thread_id=thread)
            await eventually(lambda: stack.transitions(user))
            assert (await stack.http("GET", "/readyz")).status == 200
            assert subscribers(server) == {"ours"}


OTHERS = ("runbridge", "runrecorder", "runweb", "check", "publish")


@pytest.mark.parametrize(
    "command", ["runsockets", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_process_says_which_option_it_cannot_use_and_does_not_start(
    server: Server, tmp_path: Path, command: str
):
    stack = Stack(tmp_path, server.url)
    stack.env["REDIS_URL"] = f"redis://:secret@{HOST}:{server.port}/0?decode_responses=1"
    arguments = ["chat:ended", '{"thread_id": "1"}'] if command == "publish" else []
    done = stack.run("manage.py", command, *arguments, DJANGO_SETTINGS_MODULE="realtime.settings.web")
    stack.redis.close()
    assert done.returncode != 0
    assert "realtime.E010" in done.stderr
    assert "'decode_responses'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
