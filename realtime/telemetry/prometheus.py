"""The exposition of metrics: Prometheus' text, of one process or of several workers together, and who may read it."""

from __future__ import annotations

import hmac
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from realtime.conf import conf
from realtime.telemetry.metrics import tally

LONGEST_SECONDS = 20.0
"""A connection to the metrics port of a process is cut after this time."""
CONNECTIONS = 16
"""At most as many connections to the metrics port of a process are open at once."""
_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's variable: the directory in which each worker keeps its metrics in files of its own."""


def exposition() -> bytes:
    """The text of all metrics, added up over all workers."""
    tally.flush()
    if directory := os.environ.get(_DIRECTORY):
        registry = CollectorRegistry()
        MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    return generate_latest(REGISTRY)


def may_read(authorization: str) -> bool:
    """Whether a request with this Authorization header may read metrics: if `METRICS_TOKEN` is set, it must bear it.

    The header is text as ASGI frameworks decode it, one character for each byte.
    """
    expected = f"Bearer {conf().metrics_token}"
    return not conf().metrics_token or hmac.compare_digest(authorization.encode("latin-1"), expected.encode())


# --- Workers -----------------------------------------------------------------------------------------


@contextmanager
def shared() -> Iterator[None]:
    """Let processes that are started within the context share their metrics; their files are removed at the end."""
    with TemporaryDirectory(prefix="realtime-metrics-") as directory:
        before, os.environ[_DIRECTORY] = os.environ.get(_DIRECTORY), directory
        try:
            yield
        finally:
            if before is None:
                del os.environ[_DIRECTORY]
            else:
                os.environ[_DIRECTORY] = before


def forget_all_but(pids: Collection[int | None]) -> None:
    """Forget the gauges of workers that have ended, since what they counted is no longer open. Counters stay."""
    for file in Path(os.environ[_DIRECTORY]).glob("gauge_live*_*.db"):
        if int(file.stem.rpartition("_")[2]) not in pids:
            file.unlink(missing_ok=True)


# --- The metrics port of a process without HTTP ------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    timeout = 5.0  # seconds without a byte of the request

    def do_GET(self) -> None:
        if self.path.partition("?")[0].removesuffix("/") != "/metrics":
            self._answer(404, b"")
        elif not may_read(self.headers.get("Authorization", "")):
            self._answer(401, b"", ("WWW-Authenticate", "Bearer"))
        else:
            self._answer(200, exposition(), ("Content-Type", CONTENT_TYPE_LATEST))

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: scrapes are frequent."""


class _Server(ThreadingHTTPServer):
    """A thread for each connection, at most `CONNECTIONS` of them: a further connection is closed unread."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(LONGEST_SECONDS, self.shutdown_request, [request])
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._free.release()


@contextmanager
def port(host: str, number: int) -> Iterator[int]:
    """Serve `/metrics`, and nothing else, in a thread of its own; yields the port. Raises `OSError`."""
    with _Server((host, number)) as server:
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
