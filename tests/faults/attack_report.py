"""What the ordinary clients noticed of each flood, and whether the system held."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.faults.pressing import Spent

MIB = 2**20
ALLOWED_MIB_EACH = 1.0
"""A connection of an attacker may cost so much memory."""
SLACK_MIB = 32.0
"""What the allocators of both processes may keep beside that, however many connections attack."""
CALM = "nothing"
"""The first part, in which there is no flood: what the ordinary clients notice anyway."""


@dataclass
class Noticed:
    """One flood: what the ordinary clients noticed, what it cost the system, and what the attackers."""

    flood: str
    seconds: float = 0
    deliveries: int = 0
    lost: int = 0
    doubled: int = 0
    presence_changes: int = 0
    """Ordinary clients that were seen to leave, to be away or to come."""
    reconnections: int = 0
    delays: array[float] = field(default_factory=lambda: array("d"))
    """Of messages, in seconds."""
    probes: array[float] = field(default_factory=lambda: array("d"))
    """What `/healthz` took, in seconds."""
    unanswered: int = 0
    cpu: float = 0
    memory_mib: float = 0
    """The most above what it was before."""
    commands: int = 0
    spent: Spent = field(default_factory=Spent)

    @property
    def allowed_mib(self) -> float:
        return self.spent.most_open * ALLOWED_MIB_EACH + SLACK_MIB

    def faults(self) -> list[str]:
        """What must not be."""
        wrong = {
            f"messages lost: {self.lost}": self.lost,
            f"messages doubled: {self.doubled}": self.doubled,
            f"presence changes of clients that stayed: {self.presence_changes}": self.presence_changes,
            f"memory grew by {self.memory_mib:.1f} MiB, {self.allowed_mib:.0f} are allowed": (
                self.memory_mib > self.allowed_mib
            ),
        }
        return [f"{self.flood}: {fault}" for fault, is_so in wrong.items() if is_so]

    def row(self) -> list[str]:
        sent = self.spent
        return [
            *(self.flood, f"{self.lost}/{self.doubled}", str(self.presence_changes), str(self.reconnections)),
            f"{milliseconds(self.delays, 0.5)}/{milliseconds(self.delays, 0.99)}",
            milliseconds(self.probes, 0.99) + (f" ({self.unanswered} unanswered)" if self.unanswered else ""),
            *(f"{self.cpu:.1f}", f"{self.memory_mib:+.1f} ({self.allowed_mib:.0f})", f"{self.commands:,}"),
            *(f"{sent.bytes / MIB:,.1f}", f"{sent.connections:,}"),
        ]

    def line(self) -> str:
        """The row in one line."""
        return ", ".join(f"{name} {value}" for name, value in zip(COLUMNS[1:], self.row()[1:], strict=True))


COLUMNS = (
    *("flood", "lost/doubled", "presence changes", "reconnections", "p50/p99, ms", "`/healthz` p99, ms"),
    *("CPU s", "MiB (allowed)", "Redis commands", "sent, MiB", "connections"),
)


def milliseconds(delays: Sequence[float], share: float) -> str:
    """A percentile; a dash when there is nothing to take it of."""
    if not delays:
        return "–"
    ranked = sorted(delays)
    return f"{ranked[min(int(len(ranked) * share), len(ranked) - 1)] * 1000:.0f}"


def in_all(floods: Sequence[Noticed], memory_mib: float) -> Noticed:
    """The sum of them; of memory that from the first to the last moment."""
    total = Noticed("in all", memory_mib=memory_mib)
    for each in floods:
        for name in ("seconds", "deliveries", "lost", "doubled", "presence_changes", "reconnections"):
            setattr(total, name, getattr(total, name) + getattr(each, name))
        total.delays.extend(each.delays)
        total.probes.extend(each.probes)
        total.unanswered += each.unanswered
        total.cpu += each.cpu
        total.commands += each.commands
        total.spent.bytes += each.spent.bytes
        total.spent.connections += each.spent.connections
        total.spent.most_open = max(total.spent.most_open, each.spent.most_open)
    return total


@dataclass
class Report:
    """All floods so far."""

    people: int
    floods: list[Noticed] = field(default_factory=list)
    memory_mib: float = 0
    """The most above what it was before the first."""
    absent: int = 0
    """Differences between the ordinary clients and those that are listed at the end."""
    traces: int = 0
    """Stack traces in the logs."""
    ended: list[str] = field(default_factory=list)
    """Processes of the system that are not there any more."""

    @property
    def total(self) -> Noticed:
        return in_all(self.floods, self.memory_mib)

    def faults(self) -> list[str]:
        """What must not be. Empty: the system held."""
        wrong = [fault for each in self.floods for fault in each.faults()]
        # Each flood reports its losses; memory may also grow from flood to flood.
        wrong += [fault for fault in self.total.faults() if "memory" in fault]
        wrong += [f"wrong in the list of those present at the end: {self.absent}"] if self.absent else []
        wrong += [f"stack traces logged: {self.traces}"] if self.traces else []
        return wrong + [f"{name} ended during the attack" for name in self.ended]

    def text(self) -> str:
        rows = [[*COLUMNS], ["---", *["--:"] * (len(COLUMNS) - 1)], *(each.row() for each in self.floods)]
        table = "\n".join(f"| {' | '.join(row)} |" for row in [*rows, self.total.row()])
        verdict = "\n".join(self.faults()) or "The system held."
        total = self.total
        said = f"{self.people:,} ordinary clients, {total.seconds:.0f} s, {total.deliveries:,} messages due to them."
        return f"\n{said}\n\n{table}\n\n{verdict}\n"
