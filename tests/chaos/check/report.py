"""What is found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """What became of everything; the names are those of the program's output.

    Attributes:
        allowed: what is not promised, and did happen.
        offences: the details of every broken promise.

    """

    terms: dict[str, Any] = field(default_factory=lambda: {"monotonic": True, "trusted_overlap_ms": 0.0})
    slots: Counter[str] = field(
        default_factory=lambda: Counter(due=0, published=0, skipped=0, expired=0, duplicates=0, unaccounted=0)
    )
    notifications: Counter[str] = field(
        default_factory=lambda: Counter(sent=0, handled=0, duplicates=0, lost=0, out_of_order=0)
    )
    leader_only: Counter[str] = field(default_factory=lambda: Counter(sent=0, ran=0, ran_off_leader=0, overlaps=0))
    faults: Counter[str] = field(default_factory=Counter)
    failover_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    workers_died: int = 0
    tasks_failed: int = 0
    allowed: Counter[str] = field(default_factory=Counter)
    offences: list[str] = field(default_factory=list)

    @property
    def faultless(self) -> bool:
        """Whether every promise was kept."""
        return not self.offences
