"""Durable notifications are dispatched at least once and in order, raw ones at most once."""

from __future__ import annotations

from collections import defaultdict

from tests.chaos.check.deliveries import lost, repeated, several_ids
from tests.chaos.check.report import Report
from tests.chaos.check.story import Story
from tests.chaos.history import Fact

# Each is dispatched to both; who sees the order is left alone by the injector, and takes one after the other.
HANDLER, WITNESS, RAW = "chaos.handle", "chaos.witness", "chaos.hear"


def check(story: Story, report: Report) -> None:
    """Look at what was committed, and what was run."""
    sent = story.sent(HANDLER)
    missing = [what for task in (HANDLER, WITNESS) for what in lost(story, report, task, sent)]
    duplicates = [what for task in (HANDLER, WITNESS, RAW) for what in several_ids(story, task)]
    duplicates += repeated(story, report, story.runs_of(HANDLER))
    disorder = _out_of_order(story, sent)
    report.notifications.update(
        sent=len(sent),
        handled=sum((HANDLER, (name,)) in story.done for name in sent),
        duplicates=len(duplicates),
        lost=len(missing),
        out_of_order=len(disorder),
    )
    dead = [f"{fact['name']} is a dead letter: {fact['error']}" for fact in story.of("dead letter")]
    made_up = [f"{name} was never committed" for task, (name, *_) in story.done if task == HANDLER and name not in sent]
    report.offences += [f"notifications: {what}" for what in (*missing, *duplicates, *disorder, *dead, *made_up)]


def _out_of_order(story: Story, sent: dict[str, Fact]) -> list[str]:
    """Return those whose first delivery came before one that had been committed when they were begun."""
    first: dict[str, dict[str, Fact]] = defaultdict(dict)
    for fact in story.of("received"):
        # What a worker had taken and lost comes later, and says so.
        if fact["task"] == WITNESS and fact["name"] in sent and not fact["redelivered"]:
            first[fact["key"]].setdefault(fact["name"], sent[fact["name"]])
    wrong = []
    for key, by_name in first.items():
        # Of two whose transactions overlap, either may be the first.
        soonest = float("inf")
        for name, fact in reversed(by_name.items()):
            if soonest < fact["began"]:
                wrong.append(f"{name} overtook another with the key {key}")
            soonest = min(soonest, fact["at"])
    return wrong
