"""An identity provider's key set on a local port, that can rotate, fail and hang."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jwt.algorithms import RSAAlgorithm


class JwksServer:
    """Serves `keys` (private RSA keys by their key id) as a JWKS document."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.fails = False
        """Answer 500."""
        self.body: bytes | None = None
        """Answer this instead of the keys."""
        self.redirect = ""
        """Send the asker there."""
        self.asked = 0
        """So many requests have come."""
        self.answering = threading.Event()
        self.answering.set()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/keys"

    @property
    def document(self) -> bytes:
        public = [
            {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig", "alg": "RS256"}
            for kid, key in self.keys.items()
        ]
        return json.dumps({"keys": public}).encode()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Accepts connections, and answers none of them while this lasts."""
        self.answering.clear()
        try:
            yield
        finally:
            self.answering.set()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Answers 500 while this lasts."""
        self.fails = True
        try:
            yield
        finally:
            self.fails = False

    def close(self) -> None:
        self.answering.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked += 1
                owner.answering.wait()
                body = owner.document if owner.body is None else owner.body
                body = b"out of order" if owner.fails else body
                try:
                    self.send_response(500 if owner.fails else 302 if owner.redirect else 200)
                    if owner.redirect:
                        self.send_header("Location", owner.redirect)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # the asker lost patience

            def log_message(self, *args: Any) -> None:
                pass

        return Handler
