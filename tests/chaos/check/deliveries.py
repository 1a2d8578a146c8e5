"""What holds for whatever is sent: it comes, under one task id, and is not repeated where that can be known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tests.chaos.check.report import Report
from tests.chaos.check.story import LOST_ON_THE_WAY, UNKNOWN, About, Run, Story, about
from tests.chaos.history import Fact


def lost(story: Story, report: Report, task: str, sent: Mapping[str, Fact]) -> list[str]:
    """Return what was sent to a task and never came to its end."""
    missing = [name for name in sorted(sent) if (task, (name,)) not in story.done]
    never_came = {name for name in missing if (task, (name,)) not in story.received}
    # A link of a chain is sent when the one before it has ended.
    unsent = {name for name in never_came if sent[name].get("after") in missing}
    on_the_way = never_came - unsent if story.on_redis else set()
    if on_the_way:
        report.allowed[LOST_ON_THE_WAY] += len(on_the_way)
    return [f"{name} was not run by {task}" for name in missing if name not in on_the_way | unsent]


def several_ids(story: Story, task: str) -> list[str]:
    """Return what came under more than one task id: nobody could tell that it is the same."""
    ids: dict[About, set[str]] = defaultdict(set)
    for fact in story.of("received"):
        if fact["task"] == task:
            ids[about(fact)].add(fact["id"])
    return [f"{' of '.join(what)} has {len(own)} task ids" for what, own in ids.items() if len(own) > 1]


def repeated(story: Story, report: Report, runs: Sequence[Run]) -> list[str]:
    """Return runs that repeat one that had come to its end, or was under way, where their worker could know."""
    wrong = []
    earlier: dict[str, Run] = {}
    for run in runs:
        before = earlier.get(run.id)
        if before is not None and before.done:
            # Of a notification, the worker has to have said that it could not know.
            said = run.notification is None or run.notification in story.unguarded or story.died(before)
            if story.knew(before, run) or not said:
                wrong.append(f"{run} repeats {before}")
            else:
                report.allowed[UNKNOWN] += 1
        earlier[run.id] = run
    return wrong
