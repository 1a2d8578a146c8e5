"""What a benchmark hands over: samples of figures, by contender; and what is made of them. No I/O.

As JSON, each benchmark is

    {"ours": "celery-pgleader",
     "figures": {figure: {"words": ..., "unit": "ms", "lower_is_better": true, "group": ...}},
     "about": {contender: how it was set up},
     "contenders": {contender: {figure: {"median": 5.1, "p99": 7.0, "max": 7.0, "n": 12}}},
     "ratios": {contender: {figure: {"value": 812.0}}},
     "notes": [what could not be measured, and why]}

A sample that did not come within a bound is counted as beyond it, and never guessed: a median, p99 or max that falls
among such samples is none, and `"beyond": {"bound": 15000, "n": 3}` stands beside it. A ratio that was made from the
bound says `"at_least": true`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

DIGITS = 4


@dataclass(frozen=True)
class Figure:
    """What is measured.

    Attributes:
        group: figures of one group stand in one table.
        words: what it is, for a reader of that table.
        unit: of its samples; none for a plain number.
        lower_is_better: or higher is.

    """

    group: str
    words: str
    unit: str = ""
    lower_is_better: bool = True


@dataclass
class Samples:
    """Of one figure of one contender: those that were measured, and how many were beyond a bound."""

    values: list[float] = field(default_factory=list)
    beyond: int = 0
    bound: float = 0.0


class Results:
    """The samples of one benchmark."""

    def __init__(self, ours: str, figures: Mapping[str, Figure]) -> None:
        """Begin without a sample.

        Args:
            ours: the contender to which the others are compared.
            figures: by the name under which samples are added; in the order of the tables.

        """
        self.ours = ours
        self.figures = figures
        self.about: dict[str, str] = {}
        self.notes: list[str] = []
        self._samples: dict[str, dict[str, Samples]] = {}

    def add(self, contender: str, figure: str, *values: float) -> None:
        """Add samples."""
        self._of(contender, figure).values += values

    def add_beyond(self, contender: str, figure: str, bound: float) -> None:
        """Add a sample that did not come within a bound."""
        samples = self._of(contender, figure)
        samples.beyond += 1
        samples.bound = max(samples.bound, bound)

    def as_json(self) -> dict[str, Any]:
        """Return all of it, summed up."""
        contenders = {
            contender: {name: summary(of[name]) for name in self.figures if name in of}
            for contender, of in self._samples.items()
        }
        return {
            "ours": self.ours,
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "about": self.about,
            "contenders": contenders,
            "ratios": ratios(self.ours, contenders),
            "notes": self.notes,
        }

    def _of(self, contender: str, figure: str) -> Samples:
        assert figure in self.figures, figure
        return self._samples.setdefault(contender, {}).setdefault(figure, Samples())


def summary(samples: Samples) -> dict[str, Any]:
    """Return median, p99, maximum and number of samples."""
    ordered = [*sorted(samples.values), *[math.inf] * samples.beyond]
    summed: dict[str, Any] = {
        "median": _rounded(statistics.median(ordered)),
        "p99": _rounded(quantile(ordered, 0.99)),
        "max": _rounded(ordered[-1]),
        "n": len(ordered),
    }
    if samples.beyond:
        summed["beyond"] = {"bound": samples.bound, "n": samples.beyond}
    return summed


def ratios(ours: str, contenders: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each contender's medians, divided by ours; where ours is none or nothing, there is no ratio.

    Nor is there one of what may be negative.
    """
    found: dict[str, dict[str, Any]] = {}
    for contender, figures in contenders.items():
        for name, theirs in figures.items():
            base = contenders.get(ours, {}).get(name, {}).get("median")
            if contender == ours or not base or min(base, theirs["median"] or 0) < 0:
                continue
            if theirs["median"] is not None:
                ratio = {"value": _rounded(theirs["median"] / base)}
            else:
                ratio = {"value": _rounded(theirs["beyond"]["bound"] / base), "at_least": True}
            found.setdefault(contender, {})[name] = ratio
    return found


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the sample below or at which a share of all of them is; the samples are in order."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _rounded(value: float) -> float | None:
    """Return a number to its first digits, or none for one that is not known."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
