"""What holds for whatever is sent: it comes, under one task id, and is not repeated where that can be known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from tests.chaos.check.report import Report
from tests.chaos.check.story import LOST_ON_THE_WAY, UNKNOWN, About, Run, Story


def lost(story: Story, report: Report, task: str, names: Iterable[str]) -> list[str]:
    """Return what was sent to a task and never came to its end."""
    missing = [name for name in sorted(names) if (task, (name,)) not in story.done]
    on_the_way = [name for name in missing if story.on_redis and (task, (name,)) not in story.received]
    if on_the_way:
        report.allowed[LOST_ON_THE_WAY] += len(on_the_way)
    return [f"{name} was not run by {task}" for name in missing if name not in on_the_way]


def several_ids(story: Story, task: str) -> list[str]:
    """Return what came under more than one task id: nobody could tell that it is the same."""
    ids: dict[About, set[str]] = defaultdict(set)
    for fact in story.of("received"):
        if fact["task"] == task:
            ids[(fact["entry"], fact["slot"]) if "slot" in fact else (fact["name"],)].add(fact["id"])
    return [f"{' of '.join(about)} has {len(own)} task ids" for about, own in ids.items() if len(own) > 1]


def repeated(story: Story, report: Report, runs: Sequence[Run]) -> list[str]:
    """Return runs that repeat one that had come to its end, or was under way, where their worker could know."""
    wrong = []
    earlier: dict[str, Run] = {}
    for run in runs:
        before = earlier.get(run.id)
        if before is not None and before.done:
            if story.knew(before, run):
                wrong.append(f"{run} repeats {before}")
            else:
                report.allowed[UNKNOWN] += 1
        earlier[run.id] = run
    return wrong
