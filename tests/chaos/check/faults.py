"""Which faults there were, and how soon somebody else led."""

from __future__ import annotations

from collections import Counter, defaultdict
from statistics import median

from tests.chaos.check.report import Report
from tests.chaos.check.story import PARTITIONS, Story
from tests.chaos.history import Fact

# What costs a leader its lead.
COSTLY = {"kill", "term", "stop", "terminate", "pg-restart", "pg-crash"}


def check(story: Story, report: Report) -> None:
    """Count, and take the times."""
    report.faults = Counter(fact["kind"] for fact in story.faults)
    seconds: dict[str, list[float]] = defaultdict(list)
    for fault in story.faults:
        if fault["term"] is not None and (fault["kind"] in COSTLY or _cuts_off(fault)):
            later = [f["at"] for f in story.gained if f["term"] > fault["term"] and f["at"] >= fault["began"]]
            if later:
                seconds[fault["kind"]].append(min(later) - fault["began"])
    report.failover_ms = {
        kind: {"median": round(median(some) * 1000, 1), "max": round(max(some) * 1000, 1), "n": len(some)}
        for kind, some in sorted(seconds.items())
    }


def _cuts_off(fault: Fact) -> bool:
    """Tell whether it keeps a leader from Postgres."""
    return fault["kind"] in PARTITIONS and fault["link"] == "postgres" and fault.get("how") != "slow"
