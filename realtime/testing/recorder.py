"""The fake publisher: it validates what a test publishes as in production, records it, and sends nothing."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar
from unittest import TestCase, TestResult

from django.db import connections

from presence.namespaces import OLDEST
from realtime import publisher
from realtime.protocol import bus_message
from realtime.protocol.catalogue import catalogue
from realtime.protocol.ids import composed
from realtime.testing.comparing import described, differences, listing, nearest_line, short

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """An event that was published, as its receivers would get it."""

    event: str
    data: Mapping[str, Any]
    """With ids as strings, as on the wire."""
    rooms: tuple[str, ...] = ()
    """The rooms that it goes to; a control event goes to none."""
    namespaces: tuple[str, ...] = ()
    """The namespaces in which it goes to them, in alphabetical order."""
    id: str | None = None
    """The idempotency key; without one of the caller's a random one."""
    exclude: str | None = None

    @classmethod
    def parse(cls, message: bytes) -> PublishedEvent:
        """A message as the publisher wrote it."""
        parsed = bus_message.parse(message)
        raw = json.loads(message).get("data") or {}
        sent = json.loads(b"{" + parsed.tail.removeprefix(b'",'))["data"] if parsed.tail else raw
        return cls(
            event=parsed.event,
            data=sent,
            rooms=tuple(dict.fromkeys(room for _, room in parsed.targets)),
            namespaces=tuple(sorted({namespace for namespace, _ in parsed.targets})),
            id=parsed.id,
            exclude=parsed.exclude,
        )

    def __str__(self) -> str:
        data = json.dumps(self.data, ensure_ascii=False)
        goes_to = f"{', '.join(self.rooms)} in {', '.join(self.namespaces)}" if self.rooms else "no room"
        return f"{self.event} {data if len(data) <= 200 else data[:200] + '…'} to {goes_to}"


class Published:
    """What was published while `fake_publisher` was active, in order.

    It is a sequence: `len(published)`, `published[0].data`, `for each in published`. Inside a transaction an event is
    among them after the commit, and until then in `pending`.
    """

    def __init__(self) -> None:
        self._events: list[PublishedEvent] = []
        self._taken: list[bytes] = []
        self._online: dict[tuple[str, str], list[str]] = {}

    def __iter__(self) -> Iterator[PublishedEvent]:
        return iter(tuple(self._events))

    def __len__(self) -> int:
        return len(self._events)

    def __getitem__(self, index: int) -> PublishedEvent:
        return self._events[index]

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return listing("Published", map(str, self._events))

    def clear(self) -> None:
        """Forget what was published so far."""
        self._events.clear()

    # --- What the publisher asks for (`realtime.publisher.Receiver`) ------------------------------------

    def append(self, message: bytes) -> None:
        """Record a message; in a transaction the publisher calls this after the commit."""
        self._taken.append(message)
        self._events.append(PublishedEvent.parse(message))

    def online(self, namespace: str, group: str) -> list[str]:
        """The answer that `set_online` has set."""
        return list(self._online.get((namespace, group), ()))

    # --- What a test asks for -----------------------------------------------------------------------

    def set_online(self, group: str, users: Iterable[object], *, namespace: str = OLDEST) -> None:
        """Set what `online(group)` answers. Until then it is an empty list.

        >>> published.set_online("sales", [7])
        >>> online("sales")
        ['7']
        """
        self._online[namespace, composed(group)] = [str(user) for user in users]

    @property
    def pending(self) -> list[PublishedEvent]:
        """The events of this thread that wait for a commit. A rollback takes them away."""
        waiting = [
            function.args[0]
            for connection in connections.all(initialized_only=True)
            for _, function, *_ in connection.run_on_commit
            if isinstance(function, functools.partial) and function.func == self.append
        ]
        return [PublishedEvent.parse(each) for each in waiting if not any(each is one for one in self._taken)]

    def matching(
        self,
        event: str,
        /,
        *,
        rooms: Iterable[str] | None = None,
        namespaces: Iterable[str] | None = None,
        data: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> list[PublishedEvent]:
        """The events that `assertPublished` with the same arguments would accept. Raises `ValueError`."""
        wanted = _Wanted(event, {**(data or {}), **fields}, rooms, namespaces)
        return [each for each in self._events if each.event == event and not wanted.differences(each)]

    def assertPublished(  # noqa: N802
        self,
        event: str,
        /,
        *,
        count: int | None = None,
        rooms: Iterable[str] | None = None,
        namespaces: Iterable[str] | None = None,
        data: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> PublishedEvent:
        """Assert that an event was published whose data has these fields, and return the first such event.

            published.assertPublished("thread:message", thread_id=42, body="hi")
            published.assertPublished("queue:new", count=2, rooms=["presence:sales"], namespaces=["hub"])

        Args:
            event: Its name.
            count: How many there have to be; None: at least one.
            rooms: All the rooms that it goes to, in any order.
            namespaces: All the namespaces that it reaches, in any order.
            data: More fields, for names that are parameters here.
            fields: Fields of its data. Numbers equal their digits, since ids are strings on the wire. Other fields
                of the event do not matter.

        Raises:
            AssertionError: It was not, or not as often. The text lists what was published, with the nearest difference.
            ValueError: There is no such event, or `count` is 0.
        """
        __tracebackhide__ = True
        if count == 0:
            raise ValueError("count must be at least 1: use assertNotPublished")
        wanted = _Wanted(event, {**(data or {}), **fields}, rooms, namespaces)
        found = [each for each in self._events if each.event == event and not wanted.differences(each)]
        if not found if count is None else len(found) != count:
            raise AssertionError(self._complaint(wanted, len(found), count))
        return found[0]

    def assertNotPublished(self, event: str, /, **criteria: Any) -> None:  # noqa: N802
        """Assert that no event was published that `assertPublished` with the same arguments would accept."""
        __tracebackhide__ = True
        if found := self.matching(event, **criteria):
            raise AssertionError(f"{described(event, criteria)} was published:\n  {found[0]}")

    def assertNothingPublished(self) -> None:  # noqa: N802
        """Assert that nothing was published."""
        __tracebackhide__ = True
        if self._events:
            raise AssertionError(f"Expected that nothing is published.\n{self!r}")

    def _complaint(self, wanted: _Wanted, found: int, count: int | None) -> str:
        expected = "" if count is None else f" {count} times, but {found} times"
        lines = [f"{wanted} was not published{expected}.", *wanted.nearest(self._events), repr(self)]
        if pending := self.pending:
            lines += [
                listing("Waiting for a commit", map(str, pending)),
                "In a TestCase nothing is committed: use captureOnCommitCallbacks(execute=True) or "
                "django_capture_on_commit_callbacks(execute=True).",
            ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Wanted:
    event: str
    fields: Mapping[str, Any]
    rooms: Iterable[str] | None
    namespaces: Iterable[str] | None

    def __post_init__(self) -> None:
        events = catalogue()
        known = [*events.server, *events.control]
        if self.event not in known:
            near = get_close_matches(self.event, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{self.event!r} is not an event that can be published{hint}")

    def __str__(self) -> str:
        places = {"rooms": self.rooms, "namespaces": self.namespaces}
        return described(self.event, {**self.fields, **{k: v for k, v in places.items() if v is not None}})

    def differences(self, found: PublishedEvent) -> list[str]:
        """In what an event of this name is not what is wanted."""
        told = differences(self.fields, found.data)
        for name, wanted, actual in (
            ("rooms", self.rooms, found.rooms),
            ("namespaces", self.namespaces, found.namespaces),
        ):
            if wanted is not None and sorted(wanted) != sorted(actual):
                told.append(f"{name} are {short(sorted(actual))}, expected {short(sorted(wanted))}")
        return told

    def nearest(self, events: Iterable[PublishedEvent]) -> list[str]:
        """A line about the event of this name that differs in the least."""
        return nearest_line(
            self.event, (self.differences(each) for each in events if each.event == self.event)
        )


class fake_publisher(contextlib.AbstractContextManager[Published]):  # noqa: N801
    """Validate and record what is published while the block runs, in any thread of this process; send nothing.

        with fake_publisher() as published:
            client.post("/messages/", {"thread": 42, "body": "hi"})
        published.assertPublished("thread:message", thread_id=42)

    It is also a decorator of functions; one with a parameter `published` is given the record. `publish` and `apublish`
    raise `InvalidMessage` as in production, wait for a commit and are taken back by a rollback as in production.
    """

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Published:
        published = Published()
        self._open.enter_context(publisher.received_by(published))
        return published

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self, function: F) -> F:
        """Decorate a function, or a coroutine function: each call has a record of its own."""
        takes = "published" in inspect.signature(function).parameters

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with fake_publisher() as published:
                return function(*args, **kwargs, **({"published": published} if takes else {}))

        @functools.wraps(function)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            with fake_publisher() as published:
                return await function(*args, **kwargs, **({"published": published} if takes else {}))

        decorated: Any = run_async if inspect.iscoroutinefunction(function) else run
        decorated.__signature__ = _without_published(function)  # else pytest would look for a fixture
        return decorated  # type: ignore[no-any-return]


def _without_published(function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    kept = [each for name, each in signature.parameters.items() if name != "published"]
    return signature.replace(parameters=kept)


class PublishedMixin(TestCase):
    """For unittest's and Django's test cases, in front of the class: each test has a record in `self.published`.

    class AnswerTests(PublishedMixin, TestCase):
        def test_answer_reaches_the_thread(self):
            with self.captureOnCommitCallbacks(execute=True):
                self.client.post("/messages/", {"thread": 42, "body": "hi"})
            self.published.assertPublished("thread:message", thread_id=42)
    """

    published: Published

    def run(self, result: TestResult | None = None) -> TestResult | None:
        with fake_publisher() as self.published:
            return super().run(result)
