"""The keys of an identity provider: who gets in while it answers, and while it does not."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import closing, suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from realtime.auth import jwks as keys
from realtime.auth.jwks import KeySet, KeysUnavailable, UnknownKey
from tests.e2e.jwks_server import JwksServer

TIMEOUT = 0.2


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between two fetches."""
    monkeypatch.setattr(keys, "REFETCH_SECONDS", 0.0)


@pytest.fixture
def an_hour_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause between two fetches that does not pass during a test."""
    monkeypatch.setattr(keys, "REFETCH_SECONDS", 3600.0)


def key_set(provider: JwksServer, timeout: float = 30.0, outage: float = 60.0) -> KeySet:
    return KeySet(provider.url, "RS256", timeout=timeout, outage=outage)


class Clock:
    """The time that key sets see; it can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keys, "time", clock)
    return clock


async def test_key_is_fetched_once_and_known_from_then_on(provider: JwksServer):
    found = key_set(provider)
    for _ in range(3):
        assert (await found.find("k1")).key_id == "k1"
    assert provider.asked == 1


async def test_key_that_a_fresh_key_set_lacks_is_unknown(provider: JwksServer):
    with pytest.raises(UnknownKey):
        await key_set(provider).find("k2")


async def test_key_is_not_unknown_while_the_provider_fails(provider: JwksServer, at_once: None):
    found = key_set(provider)
    with provider.failing(), pytest.raises(KeysUnavailable):
        await found.find("k1")
    await found.find("k1")
    with provider.failing(), pytest.raises(KeysUnavailable):
        await found.find("k2")
    with pytest.raises(UnknownKey):
        await found.find("k2")


async def test_key_is_not_unknown_while_the_provider_hangs(provider: JwksServer, at_once: None):
    found = key_set(provider, TIMEOUT)
    with provider.hanging(), pytest.raises(KeysUnavailable):
        await found.find("k1")


async def test_provider_that_failed_a_moment_ago_is_not_asked_again_and_no_token_is_called_invalid(
    provider: JwksServer, an_hour_later: None
):
    found = key_set(provider)
    with provider.failing():
        for _ in range(5):
            with pytest.raises(KeysUnavailable):
                await found.find("k1")
    assert provider.asked == 1


async def test_known_key_stays_good_through_an_outage_for_a_while(
    provider: JwksServer, at_once: None, clock: Clock
):
    found = key_set(provider, outage=60)
    await found.find("k1")
    with provider.failing():
        clock.ahead += keys.KEYS_SECONDS
        assert (await found.find("k1")).key_id == "k1"
        clock.ahead += 60
        with pytest.raises(KeysUnavailable):
            await found.find("k1")
    assert (await found.find("k1")).key_id == "k1"


async def test_known_key_waits_once_for_a_provider_that_hangs(
    provider: JwksServer, at_once: None, clock: Clock
):
    found = key_set(provider)
    await found.find("k1")
    found.timeout = TIMEOUT
    clock.ahead += keys.KEYS_SECONDS
    with provider.hanging():
        await found.find("k1")
        found.timeout = 3600.0  # would be waited for
        for _ in range(100):
            await found.find("k1")
    assert provider.asked <= 3


async def test_key_that_was_taken_away_is_unknown_as_soon_as_the_keys_are_fetched_again(
    provider: JwksServer, private_key: Any, clock: Clock
):
    found = key_set(provider)
    await found.find("k1")
    provider.keys = {"k2": private_key}
    clock.ahead += keys.KEYS_SECONDS
    with pytest.raises(UnknownKey):
        await found.find("k1")


async def test_flood_of_unknown_keys_costs_one_fetch(provider: JwksServer, clock: Clock, an_hour_later: None):
    found = key_set(provider)
    await found.find("k1")
    clock.ahead += keys.REFETCH_SECONDS
    results = await asyncio.gather(*[found.find(f"x{n}") for n in range(200)], return_exceptions=True)
    assert {type(result) for result in results} == {UnknownKey}
    assert provider.asked == 2


async def test_handshake_that_is_cut_while_it_waits_does_not_end_the_fetch(provider: JwksServer):
    found = key_set(provider)
    with provider.hanging():
        first, second = (asyncio.create_task(found.find("k1")) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait([first])
    assert (await second).key_id == "k1"


@pytest.mark.parametrize(
    "body",
    [b"", b"no json", b"[]", b"null", b'{"keys": 7}', b'{"keys": []}', b"[" * 100_000, b"\xff\xfe"],
    ids=lambda body: repr(body[:12]),
)
async def test_odd_answer_is_an_outage(provider: JwksServer, body: bytes):
    provider.body = body
    found = key_set(provider)
    with pytest.raises(KeysUnavailable):
        await found.find("k1")


async def test_enormous_answer_is_not_read(provider: JwksServer):
    provider.body = b" " * keys.KEYS_BYTES + provider.document
    with pytest.raises(KeysUnavailable):
        await key_set(provider).find("k1")


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "status line": (b"HTTP/1.1 200 ", b"O"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "head": (HEAD, b"a: b\r\n"),
    "line of the head": (HEAD + b"a: ", b"b"),
    "body": (HEAD + b"\r\n", b" "),
    "size of a chunk": (CHUNKED, b"0"),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "trailer": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"a: b\r\n"),
}


class EndlessServer:
    """Begins to answer, and repeats the rest `at_once` for as long as it is read, or part by part."""

    def __init__(self, begin: bytes, rest: bytes, *, at_once: int) -> None:
        self._answer = begin, rest * at_once
        self._pause = 0 if at_once > 1 else TIMEOUT / 20
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/keys"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError), self._listening.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(self._answer[0])
            while True:
                connection.sendall(self._answer[1])
                time.sleep(self._pause)

    def stop(self) -> None:
        self._listening.close()
        self._thread.join()


@pytest.mark.parametrize("at_once", [1, 10_000], ids=["trickles", "flood"])
@pytest.mark.parametrize(("begin", "rest"), ENDLESS.values(), ids=ENDLESS.keys())
async def test_answer_that_does_not_end_is_not_read_for_ever(begin: bytes, rest: bytes, at_once: int):
    server = EndlessServer(begin, rest, at_once=at_once)
    with pytest.raises(KeysUnavailable):
        await KeySet(server.url, "RS256", timeout=TIMEOUT, outage=60.0).find("k1")
    for thread in [each for each in threading.enumerate() if each.name == "jwks"]:
        await asyncio.to_thread(thread.join, 30)
        assert not thread.is_alive()
    server.stop()


ODD_KEYS: list[Any] = [
    7,
    None,
    [],
    {},
    {"kid": "b"},
    {"kid": "b", "kty": ["RSA"]},
    {"kid": "b", "kty": "RSA", "n": 1, "e": "AQAB"},
    {"kid": "b", "kty": "RSA", "n": "AQAB", "e": "AQAB", "use": ["sig"]},
    {"kid": "b", "kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": ["RS256"]},
    {"kid": "b", "kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": "ES256"},
    {"kid": ["b"], "kty": "RSA"},
    {"kid": "b", "kty": "oct"},
    {"kid": "k1", "kty": "oct", "k": "AQAB"},
    {"kid": "k1", "kty": "EC", "crv": "P-999"},
    {"kid": "k1", "kty": "RSA", "n": "AQAB", "e": "AQAB", "use": "enc"},
]


@pytest.mark.parametrize("odd", ODD_KEYS, ids=lambda key: str(key)[:60])
async def test_odd_key_does_not_take_the_others_with_it(provider: JwksServer, odd: Any):
    keys = json.loads(provider.document)["keys"]
    provider.body = json.dumps({"keys": [odd, *keys, odd]}).encode()
    assert (await key_set(provider).find("k1")).key_type == "RSA"


async def test_key_of_another_kind_may_have_the_same_id(provider: JwksServer):
    other = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
    keys = json.loads(provider.document)["keys"]
    provider.body = json.dumps({"keys": [*keys, {**other, "kid": "k1"}]}).encode()
    assert (await key_set(provider).find("k1")).key_type == "RSA"


async def test_redirect_is_not_followed(provider: JwksServer):
    with closing(JwksServer()) as other:
        other.keys = provider.keys
        provider.redirect = other.url
        with pytest.raises(KeysUnavailable):
            await key_set(provider).find("k1")
        assert other.asked == 0
