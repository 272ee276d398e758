"""Decides from paired runs of two versions whether one costs more: statistics and report, without I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

LIMIT = 1.10
"""A version whose cost is surely more than this many times the other's has a regression."""
CONFIDENCE = "95 %"
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""The 0.975 quantiles of Student's t for 1 to 20 degrees of freedom; beyond, the last is used: a little too wide."""


class Verdict(Enum):
    """What the interval of a ratio tells."""

    REGRESSION = "regression"
    SLOWER = "slower, by less than the limit, or too uncertain"
    FASTER = "faster"
    SAME = "no difference shown"
    UNDECIDED = "undecided: a regression cannot be excluded; more pairs narrow the interval"


@dataclass(frozen=True, slots=True)
class Estimate:
    """The ratio of two costs, with its confidence interval."""

    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> Verdict:
        if self.low > LIMIT:
            return Verdict.REGRESSION
        if self.low > 1:
            return Verdict.SLOWER
        if self.high < 1:
            return Verdict.FASTER
        return Verdict.UNDECIDED if self.high > LIMIT else Verdict.SAME


def estimate(base: Sequence[float], head: Sequence[float]) -> Estimate:
    """Return the ratio head ÷ base of paired costs, with its 95 % confidence interval.

    Each pair ran one after the other, so what slows the machine down for minutes cancels out in the pair's ratio. The
    interval is Student's t on the logarithms of the ratios (Student 1908, "The Probable Error of a Mean"; on ratios of
    run times and paired, repeated runs: Kalibera and Jones 2013, "Rigorous Benchmarking in Reasonable Time").

    Raises `ValueError` for fewer than two pairs, or a cost that is not above zero.

    >>> estimate([1.0, 2.0, 4.0], [1.2, 2.4, 4.8]).ratio
    1.2
    """
    if len(base) != len(head) or len(base) < 2:
        raise ValueError(f"expected two or more pairs, got {len(base)} and {len(head)} costs")
    if min(*base, *head) <= 0:
        raise ValueError("expected costs above zero")
    logarithms = [math.log(b / a) for a, b in zip(base, head, strict=True)]
    middle = statistics.fmean(logarithms)
    error = statistics.stdev(logarithms) / math.sqrt(len(logarithms))
    reach = _STUDENT[min(len(logarithms) - 1, len(_STUDENT)) - 1] * error
    low, ratio, high = (round(math.exp(value), 9) for value in (middle - reach, middle, middle + reach))
    return Estimate(ratio, low, high, len(logarithms))


@dataclass
class Comparison:
    """All pairs of all scenarios."""

    base: str
    unit: str
    """What the costs are: `instructions` or `CPU seconds`."""
    costs: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    """For each scenario the costs of the base, and of the working tree."""
    failures: dict[str, list[str]] = field(default_factory=dict)
    """For each scenario, what the working tree lost or could not do."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Scenarios that the base cannot run, with the reason."""

    def add(self, scenario: str, base: float, head: float) -> None:
        bases, heads = self.costs.setdefault(scenario, ([], []))
        bases.append(base)
        heads.append(head)

    @property
    def estimates(self) -> dict[str, Estimate]:
        return {key: estimate(*costs) for key, costs in self.costs.items() if len(costs[0]) > 1}

    @property
    def passed(self) -> bool:
        """Whether there is no regression, and the working tree lost nothing."""
        regressions = [key for key, each in self.estimates.items() if each.verdict is Verdict.REGRESSION]
        return not regressions and not self.failures

    def markdown(self, titles: Mapping[str, str]) -> str:
        """Return the table: a line for each scenario."""
        lines = [
            f"The working tree against {self.base}: {self.unit}, ratios with {CONFIDENCE} confidence intervals.",
            "",
            f"| | base | working tree | ratio | {CONFIDENCE} | pairs | |",
            "|---|--:|--:|--:|--:|--:|---|",
        ]
        for key, each in self.estimates.items():
            base, head = (statistics.fmean(costs) for costs in self.costs[key])
            lines.append(
                f"| {key}. {titles[key]} | {base:,.3g} | {head:,.3g} | {each.ratio:.3f} "
                f"| {each.low:.3f}–{each.high:.3f} | {each.pairs} | {each.verdict.value} |"
            )
        few = self.costs.keys() - self.estimates.keys()
        lines += ["", *(f"{key} has too few pairs" for key in sorted(few))]
        lines += [*(f"{key} is left out: {reason}" for key, reason in self.left_out.items())]
        lines += [f"{key} failed: {text}" for key, texts in self.failures.items() for text in texts]
        lines.append(f"{'Passed' if self.passed else 'FAILED'}: the limit is a ratio surely above {LIMIT:g}.")
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "unit": self.unit,
            "passed": self.passed,
            "costs": self.costs,
            "estimates": {
                key: {"ratio": each.ratio, "low": each.low, "high": each.high, "verdict": each.verdict.name}
                for key, each in self.estimates.items()
            },
            "failures": self.failures,
            "left_out": self.left_out,
        }
