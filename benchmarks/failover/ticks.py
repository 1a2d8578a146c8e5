"""How many ticks are missing, and how many there are too many. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Tick:
    """One that was sent.

    Attributes:
        at: when, in seconds.
        slot: for which due time, if its message says so.

    """

    at: float
    slot: str | None = None


def count(ticks: Sequence[Tick], period: float) -> tuple[int, int]:
    """Return how many are missed and how many are duplicated, between the first and the last of them.

    By their slots, if they have such: each is due once. Otherwise by their times: one that comes less than half a
    period after the last one that counts does not count, nor do more than are due.
    """
    if all(tick.slot is not None for tick in ticks):
        slots = {datetime.fromisoformat(tick.slot).timestamp() for tick in ticks if tick.slot is not None}
        due, kept = round((max(slots) - min(slots)) / period) + 1, len(slots)
    else:
        times = sorted(tick.at for tick in ticks)
        due, kept, last = round((times[-1] - times[0]) / period) + 1, 0, float("-inf")
        for at in times:
            if at - last >= period / 2:
                kept, last = kept + 1, at
        kept = min(kept, due)
    return due - kept, len(ticks) - kept
