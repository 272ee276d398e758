"""What is read of a head in one go is what the general parser makes of the same bytes."""

from __future__ import annotations

from typing import Any

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol

from realtime.server.heads import MOST_LINES, Handshake, read_handshake

REQUEST = b"GET /hub/?resume=1 HTTP/1.1\r\n"
LINES = [
    b"Host: h:8001\r\n",
    b"Connection: Upgrade\r\n",
    b"Upgrade: websocket\r\n",
    b"Sec-WebSocket-Version: 13\r\n",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    b"Authorization: Bearer a.b.c\r\n",
    b"Origin: https://example.com\r\n",
]
HEAD = b"".join([REQUEST, *LINES, b"\r\n"])


class Parsed:
    """What httptools and websockets make of a head."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.target = b""
        self.rest: bytes | None = None
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.rest = data[upgrade.args[0] :]

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def handshake(self) -> Handshake:
        assert self.rest == b""
        assert (self.parser.get_method(), self.parser.get_http_version()) == (b"GET", "1.1")
        named = Headers([(name.decode(), value.decode()) for name, value in self.headers])
        response = ServerProtocol().accept(Request(self.target.decode(), named, "GET"))
        assert response.status_code == 101
        return Handshake(self.target, self.headers, response.headers["Sec-WebSocket-Accept"].encode())


def test_ordinary_handshake_is_read_at_once():
    found = read_handshake(HEAD)
    assert found is not None
    assert found == Parsed(HEAD).handshake()
    assert found.target == b"/hub/?resume=1"
    assert found.accepts == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # the example in RFC 6455 §1.3


def with_line(number: int, line: bytes) -> bytes:
    return b"".join([REQUEST, *LINES[:number], line, *LINES[number + 1 :], b"\r\n"])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(HEAD[:-1], id="incomplete"),
        pytest.param(HEAD + b"\x81", id="a frame behind it"),
        pytest.param(b"\r\n" + HEAD, id="line break before it"),
        pytest.param(HEAD.replace(b"\r\n", b"\n"), id="bare line feeds"),
        pytest.param(HEAD.replace(b"GET", b"POST"), id="another method"),
        pytest.param(HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"), id="older HTTP"),
        pytest.param(HEAD.replace(b"resume=1", b"token=a.b.c"), id="token in the URL"),
        pytest.param(HEAD.replace(b"/hub/", b"/h%75b/"), id="escaped path"),
        pytest.param(HEAD.replace(b"/hub/", b"http://h/hub/"), id="whole URL"),
        pytest.param(with_line(0, b""), id="no host"),
        pytest.param(with_line(0, LINES[0] * 2), id="two hosts"),
        pytest.param(with_line(0, b"Host: \r\n"), id="empty host"),
        pytest.param(with_line(0, b"Host:h\r\n"), id="no space"),
        pytest.param(with_line(0, b"Host : h\r\n"), id="space in a name"),
        pytest.param(with_line(0, b"Host: h\r\n continued\r\n"), id="continued line"),
        pytest.param(with_line(0, b"Host: h\xff\r\n"), id="beyond ASCII"),
        pytest.param(with_line(1, b"Connection: close, Upgrade\r\n"), id="connection that is closed"),
        pytest.param(with_line(1, b""), id="no connection"),
        pytest.param(with_line(2, b"Upgrade: h2c\r\n"), id="another upgrade"),
        pytest.param(with_line(3, b"Sec-WebSocket-Version: 8\r\n"), id="another version"),
        pytest.param(with_line(4, b"Sec-WebSocket-Key: c2hvcnQ=\r\n"), id="short key"),
        pytest.param(with_line(4, LINES[4] * 2), id="two keys"),
        pytest.param(with_line(5, LINES[5] * 2), id="two tokens"),
        pytest.param(with_line(6, b"Sec-WebSocket-Protocol: a b\r\n"), id="no subprotocol"),
        pytest.param(with_line(6, b"Sec-WebSocket-Protocol: a%b\r\n" % (b",a" * 10)), id="many subprotocols"),
        pytest.param(with_line(6, b"Content-Length: 0\r\n"), id="a length"),
        pytest.param(with_line(6, b"Transfer-Encoding: chunked\r\n"), id="a body"),
        pytest.param(with_line(6, b"Expect: 100-continue\r\n"), id="an expectation"),
        pytest.param(with_line(6, b"".join(b"X-%d: 1\r\n" % n for n in range(MOST_LINES))), id="many lines"),
        pytest.param(with_line(6, b"X: %b\r\n" % (b"x" * 17_000)), id="long line"),
    ],
)
def test_whatever_is_unusual_is_left_unread(data: bytes):
    assert read_handshake(data) is None


NAMES = st.sampled_from(
    [
        "Host",
        "connection",
        "UPGRADE",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Version",
        "Sec-WebSocket-Protocol",
        "Authorization",
        "Origin",
        "Sec-WebSocket-Extensions",
        "X_Y",
        "Content-Length",
        "Trailer",
        "TE",
        "Cookie",
        "Transfer-Encoding",
    ]
)
VALUES = st.sampled_from(
    [
        "h",
        "Upgrade",
        "keep-alive, Upgrade",
        "websocket",
        "13",
        "dGhlIHNhbXBsZSBub25jZQ==",
        "AAAAAAAAAAAAAAAAAAAAAB==",
        "Bearer a.b.c",
        "null",
        "0",
        "realtime.v1, bearer.a.b-c",
        "permessage-deflate; x",
        "a:b",
        "chunked",
        "close",
    ]
) | st.text(st.characters(min_codepoint=0x1F, max_codepoint=0x80), max_size=12)


@given(
    st.lists(st.tuples(NAMES, VALUES).map(lambda line: f"{line[0]}: {line[1]}\r\n".encode()), max_size=4),
    st.permutations(LINES),
    st.integers(0, 4),
)
@example([], LINES, 0)
def test_what_is_read_is_what_the_parser_reads(more: list[bytes], lines: list[bytes], left_out: int):
    data = b"".join([REQUEST, *lines[left_out:], *more, b"\r\n"])
    if (found := read_handshake(data)) is not None:
        assert found == Parsed(data).handshake()


@given(st.integers(0, len(HEAD) - 1), st.integers(0, 2), st.binary(max_size=3))
def test_head_with_a_change_is_read_as_the_parser_reads_it(at: int, without: int, put: Any):
    data = HEAD[:at] + put + HEAD[at + without :]
    if (found := read_handshake(data)) is not None:
        assert found == Parsed(data).handshake()
