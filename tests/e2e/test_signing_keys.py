"""Tokens signed with asymmetric keys, and key servers that fail or hang."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.e2e.harness import Stack, eventually, free_port, unique
from tests.e2e.jwks_server import JwksServer


def private_pem(key: Any) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def rsa_key() -> Any:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Keyed:
    """Socket servers that can verify but not sign, one for each algorithm, and one with a key server."""

    def __init__(self, stack: Stack, jwks: JwksServer) -> None:
        self.stack = stack
        self.jwks = jwks
        self.private = {
            "RS256": rsa_key(),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        }
        self.ports = {name: free_port() for name in (*self.private, "JWKS")}

    def start(self) -> None:
        for name, key in self.private.items():
            self._start(name, JWT_ALGORITHM=name, JWT_VERIFYING_KEY=public_pem(key))
        self._start("JWKS", JWT_ALGORITHM="RS256", JWT_JWK_URL=self.jwks.url)
        for process in self.stack.processes:
            process.wait_for()

    def _start(self, name: str, **env: str) -> None:
        self.stack.start(
            "runsockets", ready="", SOCKETS_PORT=str(self.ports[name]), JWT_SIGNING_KEY="", **env
        )

    async def ask_jwks(self, key: Any, kid: str | None, **claims: Any) -> int:
        """The status of a handshake with a token of this key."""
        token = self.stack.sign(
            key=key, algorithm="RS256", header={"kid": kid} if kid else None, user_id=unique("u"), **claims
        )
        return (await self.stack.handshake(token=token, port=self.ports["JWKS"])).status


@pytest.fixture(scope="module")
def keyed(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with closing(JwksServer()) as jwks, Stack(tmp_path_factory.mktemp("keyed"), redis_url) as stack:
        keyed = Keyed(stack, jwks)
        keyed.start()
        yield keyed


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_public_key_is_enough_to_verify(keyed: Keyed, algorithm: str):
    stack, port = keyed.stack, keyed.ports[algorithm]
    good = stack.sign(key=keyed.private[algorithm], algorithm=algorithm)
    assert (await stack.handshake(token=good, port=port)).status == 101
    forger = {"RS256": rsa_key, "ES256": lambda: ec.generate_private_key(ec.SECP256R1())}.get(
        algorithm, ed25519.Ed25519PrivateKey.generate
    )()
    forged = stack.sign(key=forger, algorithm=algorithm)
    stack.assert_refused(await stack.handshake(token=forged, port=port), 401, "token_invalid")


async def jwks_client(keyed: Keyed) -> tuple[Any, str, str]:
    """A good key that the server has already seen."""
    kid, key = unique("k"), rsa_key()
    keyed.jwks.keys = {kid: key}

    async def accepted() -> bool:
        return await keyed.ask_jwks(key, kid) == 101

    await eventually(accepted)
    return key, kid, keyed.stack.sign(key=key, algorithm="RS256", header={"kid": kid}, user_id=unique("u"))


async def test_failing_key_server_is_no_reason_to_call_a_token_invalid(keyed: Keyed):
    key, kid, token = await jwks_client(keyed)
    new_kid, new_key = unique("k"), rsa_key()
    async with keyed.stack.client("hub", token=token, port=keyed.ports["JWKS"]) as other:
        with keyed.jwks.failing():

            async def unavailable() -> bool:  # (401 as long as the keys were fetched a moment ago)
                return await keyed.ask_jwks(new_key, new_kid) == 503

            await eventually(unavailable)
            unknown = keyed.stack.sign(key=new_key, algorithm="RS256", header={"kid": new_kid})
            refusal = await keyed.stack.handshake(token=unknown, port=keyed.ports["JWKS"])
            keyed.stack.assert_refused(refusal, 503, "unavailable")
            assert float(refusal.headers["retry-after"]) > 0
            assert (await other.refused("auth:refresh", {"token": unknown}))["code"] == "unavailable"
            assert await keyed.ask_jwks(key, kid) == 101
            await other.call("heartbeat")
        keyed.jwks.keys[new_kid] = new_key

        async def accepted() -> bool:
            return await keyed.ask_jwks(new_key, new_kid) == 101

        await eventually(accepted)


async def ask_in_vain(keyed: Keyed) -> asyncio.Task[int]:
    """A handshake that waits for the hanging key server."""
    while True:
        before = keyed.jwks.asked
        task = asyncio.create_task(keyed.ask_jwks(rsa_key(), unique("k")))
        await eventually(lambda task=task, before=before: task.done() or keyed.jwks.asked > before)
        if not task.done():
            return task
        # Refused without asking: the keys had been fetched just before.


async def test_hanging_key_server_blocks_no_client_that_is_connected(keyed: Keyed):
    _, _, token = await jwks_client(keyed)
    async with keyed.stack.client("hub", token=token, port=keyed.ports["JWKS"]) as other:
        with keyed.jwks.hanging():
            waiting = await ask_in_vain(keyed)
            await other.call("heartbeat")
            assert (await keyed.stack.http("GET", "/healthz", port=keyed.ports["JWKS"])).status == 200
            assert not waiting.done()
            assert await waiting in {401, 503}
