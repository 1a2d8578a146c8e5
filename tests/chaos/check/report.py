"""What is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Times = dict[str, dict[str, float]]


def _zeros(names: str) -> Callable[[], Counter[str]]:
    return lambda: Counter(dict.fromkeys(names.split(), 0))


@dataclass
class Report:
    """What became of everything; the names are those of the program's output.

    Attributes:
        restore_ms: leader-only tasks: from the lead, with some waiting, to the first start; from `kill -9` to the next
            start of what that interrupted.
        allowed: what is not promised, and did happen.
        offences: the details of every broken promise.

    """

    terms: dict[str, Any] = field(default_factory=lambda: {"number": 0, "monotonic": True, "trusted_overlap_ms": 0.0})
    slots: Counter[str] = field(
        default_factory=_zeros("due published skipped expired republished duplicates unaccounted")
    )
    notifications: Counter[str] = field(
        default_factory=_zeros(
            "sent in_doubt handled redelivered duplicates lost out_of_order raw_sent raw_lost raw_heard_twice"
        )
    )
    leader_only: Counter[str] = field(default_factory=_zeros("sent ran ran_off_leader overlaps repeated"))
    faults: Counter[str] = field(default_factory=Counter)
    failover_ms: Times = field(default_factory=dict)
    restore_ms: Times = field(default_factory=dict)
    workers_died: int = 0
    tasks_failed: int = 0
    allowed: Counter[str] = field(default_factory=Counter)
    offences: list[str] = field(default_factory=list)

    @property
    def faultless(self) -> bool:
        """Whether every promise was kept."""
        return not self.offences


def in_ms(seconds: Mapping[str, Sequence[float]]) -> Times:
    """Sum up durations by what they are of."""
    return {
        name: {"median": round(median(some) * 1000, 1), "max": round(max(some) * 1000, 1), "n": len(some)}
        for name, some in sorted(seconds.items())
        if some
    }
