"""Whether this instance can deliver, proven at most once a second however often that is asked."""

from __future__ import annotations

import asyncio

from redis.exceptions import RedisError

from realtime.connections.registry import ConnectionRegistry
from realtime.redis import schema_version
from realtime.tasks.per_loop import PerLoop

PROVEN_SECONDS = 1.0
"""How long a proof counts."""
PROOF_SECONDS = 0.8
"""How long a proof may take."""


async def reasons_not_ready() -> list[str]:
    """Why this instance cannot deliver, as the last proof found; empty when it can."""
    if ConnectionRegistry.current().is_draining:
        return ["draining"]
    return await _readiness().reasons()


async def prove() -> list[str]:
    """Why this instance cannot deliver now; empty when it can.

    It can when Redis answers, and a message sent through Redis came back through the subscription.
    """

    async def ask() -> None:
        async with asyncio.timeout(PROOF_SECONDS):
            await schema_version.claim()

    answers = await asyncio.gather(
        ask(), ConnectionRegistry.current().probe(PROOF_SECONDS), return_exceptions=True
    )
    names = ("redis does not answer", "a probe did not come back through the subscription")
    reasons = []
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, schema_version.OtherSchemaVersion):
            reasons.append(str(answer))
        elif isinstance(answer, RedisError | OSError):
            reasons.append(name)
        elif isinstance(answer, BaseException):
            raise answer
    return list(dict.fromkeys(reasons))


class Readiness:
    """The last proof, shared by all requests within `PROVEN_SECONDS`."""

    def __init__(self) -> None:
        self._proof: asyncio.Task[list[str]] | None = None
        self._proven_at = 0.0

    async def reasons(self) -> list[str]:
        """What the last proof found; a new one begins when it is too old."""
        proof = self._proof
        now = asyncio.get_running_loop().time()
        if proof is None or (proof.done() and now - self._proven_at >= PROVEN_SECONDS):
            proof = self._proof = asyncio.create_task(prove(), name="readiness")
            proof.add_done_callback(self._proven)
        return await asyncio.shield(proof)

    def abort(self) -> None:
        """The event loop ends."""
        if self._proof is not None:
            self._proof.cancel()

    def _proven(self, proof: asyncio.Task[list[str]]) -> None:
        self._proven_at = asyncio.get_running_loop().time()


_readiness: PerLoop[Readiness] = PerLoop(Readiness, Readiness.abort)
