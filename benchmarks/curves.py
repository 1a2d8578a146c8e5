"""Which figures are drawn as curves. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Curve:
    """Figures that differ in one number.

    Attributes:
        name: of the file.
        title: what is drawn.
        benchmark: whose figures they are.
        figure: their name, with {} where the number is.
        numbers: as they stand there.
        x: what the number counts.
        y: the figure, with its unit.

    """

    name: str
    title: str
    benchmark: str
    figure: str
    numbers: Sequence[str]
    x: str
    y: str

    def points(self, benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[float, float, float]]]:
        """Return number, median and p99 of each contender that has at least two of them."""
        found: dict[str, list[tuple[float, float, float]]] = {}
        for contender, figures in benchmarks.get(self.benchmark, {}).get("contenders", {}).items():
            for number in self.numbers:
                summed = figures.get(self.figure.format(number))
                if summed is not None and summed["p99"] is not None:
                    point = float(number.replace(",", "")), summed["median"], summed["p99"]
                    found.setdefault(contender, []).append(point)
        return {contender: points for contender, points in found.items() if len(points) > 1}

    def is_in(self, benchmarks: Mapping[str, Mapping[str, Any]]) -> bool:
        """Tell whether there is something to draw."""
        return bool(self.points(benchmarks))


ENTRIES = ("10", "1,000", "10,000")
CURVES = (
    Curve("lateness", "Lateness of ticks", "schedule", "lateness with {} entries", ENTRIES, "entries", "ms"),
    Curve("cpu", "Processor time for a tick", "schedule", "CPU for a tick with {} entries", ENTRIES, "entries", "ms"),
    Curve(
        "statements", "Statements of an idle fleet", "overhead", "statements of {} nodes", ("3", "30", "300"), "nodes",
        "statements a second",
    ),
    Curve(
        "followers", "Failover", "growth", "failover, {} followers", ("2", "10", "50"), "followers", "ms",
    ),
    Curve(
        "channels", "Durable notifications dispatched", "growth", "relay, {} channels", ("1", "10", "100"), "channels",
        "a second",
    ),
    Curve(
        "ledger", "A claim", "growth", "claim, {} ledger rows", ("0", "10000", "100000", "1000000"),
        "rows in the ledger", "ms",
    ),
)  # fmt: skip
