"""What a worker counts of itself for metrics, until its steward writes it down."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable

# As in the migration 0005, whose buckets they are.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
LABELS = (*(f"{bound:g}" for bound in BOUNDS), "+Inf")


class Tally:
    """Counts since the process was started; rising only."""

    def __init__(self, runs: Callable[[], int] = lambda: 0) -> None:
        """Begin at zero.

        Args:
            runs: how many leader-only runs have begun.

        """
        self._runs = runs
        self._turn = threading.Lock()
        self._counts: defaultdict[tuple[str, str], float] = defaultdict(float)

    def renewed(self, seconds: float) -> None:
        """Count a renewal that took so long."""
        with self._turn:
            self._counts["renewal", LABELS[bisect_left(BOUNDS, seconds)]] += 1
            self._counts["renewal", "sum"] += seconds

    def totals(self) -> dict[tuple[str, str], float]:
        """Return what was counted, by name and label."""
        with self._turn:
            return {**self._counts, ("leader_only_runs", ""): self._runs()}
