"""Durable notifications are dispatched at least once and in order, raw ones at most once."""

from __future__ import annotations

from collections import Counter, defaultdict

from tests.chaos.check.report import Report
from tests.chaos.check.story import Story, lost, repeated, several_ids
from tests.chaos.history import Fact

# Each is dispatched to both; the one that sees the order is left alone by the injector, and takes one after the other.
# What is sent to that one only is run once, too.
HANDLER, WITNESS, RAW = "chaos.handle", "chaos.witness", "chaos.hear"
SENT_AGAIN = "raw notifications whose message came twice, under one task id"


def check(story: Story, report: Report) -> None:
    """Look at what was committed, and what was run."""
    once = {(task, name): fact for task in (HANDLER, WITNESS) for name, fact in story.sent(task).items()}
    sent, raw = {name: fact for (_, name), fact in once.items()}, story.sent(RAW)
    missing = lost(story, report, HANDLER, story.sent(HANDLER)) + lost(story, report, WITNESS, sent)
    duplicates = [what for task in (HANDLER, WITNESS, RAW) for what in several_ids(story, task)]
    came = Counter(f["name"] for f in story.of("received") if f["task"] == RAW and not f["redelivered"])
    # Celery publishes once more if the connection breaks before the broker has answered, always under the same id.
    if twice := sum(number > 1 for number in came.values()):
        report.allowed[SENT_AGAIN] += twice
    duplicates += repeated(story, report, [run for run in story.runs if (run.task, run.about[0]) in once])
    disorder = _out_of_order(story, sent)
    deliveries = [(fact["task"], fact["id"]) for fact in story.of("received") if fact["task"] in {HANDLER, WITNESS}]
    heard = Counter(run.about[0] for run in story.runs_of(RAW))
    report.notifications.update(
        sent=len(sent),
        in_doubt=sum(fact["name"] in sent for fact in story.of("in doubt")),
        handled=sum((task, (name,)) in story.done for task, name in once),
        redelivered=len(deliveries) - len(set(deliveries)),
        duplicates=len(duplicates),
        lost=len(missing),
        out_of_order=len(disorder),
        raw_sent=len(raw),
        raw_lost=len(raw.keys() - heard.keys()),
        raw_heard_twice=sum(number > 1 for number in heard.values()),
    )
    dead = [f"{fact['name']} is a dead letter: {fact['error']}" for fact in story.of("dead letter")]
    done = [run for run in story.runs if run.done and run.task in {HANDLER, WITNESS}]
    made_up = [f"{run} was never committed" for run in done if run.about[0] not in sent]
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
