"""Whether the promises were kept, read from the history of a run, by somebody who made none of the faults.

python -m tests.chaos.check HISTORY
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.chaos.check import faults, leader_only, notifications, slots, terms, workers
from tests.chaos.check.report import Report
from tests.chaos.check.story import Story
from tests.chaos.history import Fact


def check(facts: Iterable[Fact]) -> Report:
    """Return what became of everything in a history."""
    story, report = Story(facts), Report()
    for part in (terms, slots, notifications, leader_only, workers, faults):
        part.check(story, report)
    return report
