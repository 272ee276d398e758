"""Frames as bytes, without a connection."""

from __future__ import annotations

import pytest
from websockets.frames import Opcode

from realtime.server.frames import frame_size, short_text
from tests.server.serving import PING, frame


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"", 2),
        (b"\x81", 2),
        (b"\x81\x80", 6),
        (b"\x81\x83\0\0\0\0", 9),
        (b"\x81\xfe", 8),
        (b"\x81\xfe\x00\x80\0\0\0\0", 136),
        (b"\x81\xff", 14),
        (b"\x81\xff" + (1000).to_bytes(8) + b"\0\0\0\0", 1014),
        (b"\x81\xff" + (1001).to_bytes(8) + b"\0\0\0\0", 14),
        (b"\x81\xff" + (2**63 - 1).to_bytes(8) + b"\0\0\0\0xxx", 17),
        (b"\x81\x05hel", 5),
        (b"\x83\x85", 2),
        (b"\x8b\x85", 2),
    ],
    ids=repr,
)
def test_size_of_a_frame_is_in_its_header(data: bytes, size: int):
    assert frame_size(data, 1000) == size


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (frame("été"), "été"),
        (frame("x" * 125), "x" * 125),
        (frame("x" * 126), None),
        (frame("xy", fin=False), None),
        (frame("xy", Opcode.BINARY), None),
        (b"\x81\x81\0\0\0\0\xff", None),
        (PING, None),
    ],
    ids=["short", "longest", "too long", "fragment", "binary", "no utf-8", "ping"],
)
def test_only_a_whole_short_text_frame_is_read_without_the_parser(data: bytes, text: str | None):
    assert short_text(data, 1000) == text


def test_short_text_beyond_the_limit_is_left_to_the_parser():
    assert (short_text(frame("xy"), 2), short_text(frame("xyz"), 2)) == ("xy", None)
