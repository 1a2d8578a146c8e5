"""Whether the promises were kept, read from the history of a run, apart from what made the faults."""

from __future__ import annotations

from collections.abc import Iterable

from tests.chaos.check import leader_only, notifications, slots, terms, workers
from tests.chaos.check.report import Report
from tests.chaos.check.story import Story
from tests.chaos.history import Fact


def check(facts: Iterable[Fact]) -> Report:
    """Return what became of everything in a history."""
    story, report = Story(facts), Report()
    for part in (terms, slots, notifications, leader_only, workers):
        part.check(story, report)
    # A run in which nothing happens shows nothing.
    for what, least in story.run.get("least", {}).items():
        section, name = what.split(".")
        if (number := getattr(report, section)[name]) < least:
            report.offences.append(f"too little: {what} is {number}, and not {least}")
    return report
