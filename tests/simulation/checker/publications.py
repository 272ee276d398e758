"""What Redis publishes in rooms."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.simulation.checker.books import Books
from tests.simulation.checker.history import History, Publication


class Publications(Books):
    """Each message of the bus once, those of the stream in its order."""

    def added(self, key: bytes, id: tuple[int, int], fields: list[bytes]) -> None:
        """An entry was added to some stream."""
        if key == self.dead:
            self.fail(f"dead letter: {fields}")
        if not key.startswith(self.log) or not key.endswith(b"}:log"):
            return
        group, raw = key[len(self.log) : -5].decode(), fields[1]
        start = 51 + int(raw[45:51])
        excluded = raw[51:start].decode().partition("\0")[0]
        message = msgspec.json.decode(raw[start:])
        history, position = self.history(group), int(raw[17:33])
        publication = Publication(int(raw[1:17]), excluded, message, self.now())
        if position in history.publications:
            self.fail(f"{group}: position {position} was used twice")
        if history.order and publication.previous != history.end:
            self.fail(f"{group}: {position} follows {publication.previous}, but the end was {history.end}")
        self._check_number(group, history, message)
        history.add(position, publication)

    def _check_number(self, group: str, history: History, message: dict[str, Any]) -> None:
        """Each message once, those of the stream in its order."""
        number = message["data"].get("number")
        if number is None:
            return
        for position in reversed(history.order[-200:]):
            data = history.publications[position].message["data"]
            if data.get("number") == number:
                self.fail(f"{group}: message {number} was published twice")
            if data.get("durable") and message["data"]["durable"] and data["number"] > number:
                self.fail(f"{group}: message {number} was published after {data['number']}")

    def entered(self, key: bytes) -> None:
        """A room is entered for the first time since Redis has known it: messages are published in it from now on."""
        if key.startswith(self.log) and key.endswith(b"}:room"):
            self.expected.setdefault(key[len(self.log) : -6].decode(), [])

    def expect(self, group: str, number: int) -> None:
        """A message was added to the bus for a room."""
        if group in self.expected:
            self.expected[group].append(number)

    def check_complete(self, group: str, expected: list[int]) -> None:
        history, wanted = self.history(group), set(expected)
        data = [history.publications[position].message["data"] for position in history.order]
        published = [each["number"] for each in data if each.get("number") in wanted]
        if published != expected:
            missing = sorted(wanted - set(published))
            self.fail(f"{group}: {missing} of the bus were never published, or all of them in another order")
