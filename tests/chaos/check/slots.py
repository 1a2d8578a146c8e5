"""Each slot is accounted for once, published under one task id, and run as its policies say."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from itertools import pairwise
from typing import TypeAlias

from tests.chaos.check.report import Report
from tests.chaos.check.story import LOST_ON_THE_WAY, UNKNOWN, Story, repeated, several_ids
from tests.chaos.history import Fact

TASK = "chaos.tick"
# Seconds between the slots of each entry; those whose runs must not be repeated; those that must not overlap.
STEPS = {"plain": 1.0, "each": 1.0, "brief": 1.0, "single": 1.0, "patient": 2.0, "long": 7.0, "minute": 60.0}
DEDUPLICATED = {"each", "patient"}
ONE_AT_A_TIME = ("single", "patient")

# The name of an entry, and microseconds since 1970.
Slot: TypeAlias = tuple[str, int]


def check(story: Story, report: Report) -> None:
    """Look at the ledger, at what was received, and at the runs."""
    entries = {fact["entry"]: fact for fact in story.of("ledger entry")}
    rows = story.of("ledger slot")
    accounted = Counter(slot for row in rows for slot in _slots_of(row))
    for row in rows:
        if row["state"] != "claimed":
            report.slots[row["state"]] += row["slots"]
    # What was claimed just before the ledger was copied is not counted.
    under_way = {slot_of(row) for row in rows if row["state"] == "claimed" and not row["old"]}
    due = [slot for entry in entries.values() for slot in _due(entry)]
    report.slots["due"] = len(set(due) - under_way)
    unaccounted = [f"{_words(slot)} is not in the ledger" for slot in due if slot not in accounted]
    unaccounted += [
        f"{_words(slot_of(row))} was never published" for row in rows if row["state"] == "claimed" and row["old"]
    ]
    deliveries = [fact for fact in story.of("received") if fact["task"] == TASK]
    received = {slot_of(fact) for fact in deliveries}
    unaccounted += _not_received(story, report, received)
    first = [slot_of(fact) for fact in deliveries if not fact["redelivered"]]
    report.slots["republished"] = len(first) - len(set(first))
    duplicates = [f"{_words(slot)} is in the ledger {number} times" for slot, number in accounted.items() if number > 1]
    # Later ones came when the ledger had been copied.
    last = {name: _micros(entry["last_slot"] or 0.0) for name, entry in entries.items()}
    early = {slot for slot in received if slot[1] <= last.get(slot[0], 0)}
    duplicates += [f"{_words(slot)} was sent and never claimed" for slot in early if slot not in accounted]
    duplicates += several_ids(story, TASK)
    runs = story.runs_of(TASK)
    duplicates += repeated(story, report, [run for run in runs if run.about[0] in DEDUPLICATED])
    report.slots["unaccounted"], report.slots["duplicates"] = len(unaccounted), len(duplicates)
    report.offences += [f"slots: {what}" for what in (*unaccounted, *duplicates, *_overlapping(story, report))]


def _not_received(story: Story, report: Report, received: set[Slot]) -> list[str]:
    published = [slot_of(row) for row in story.of("ledger slot") if row["state"] == "published"]
    missing = [slot for slot in published if slot not in received]
    if missing and story.on_redis:
        report.allowed[LOST_ON_THE_WAY] += len(missing)
        return []
    return [f"{_words(slot)} was published and never came" for slot in missing]


def _overlapping(story: Story, report: Report) -> list[str]:
    """Return runs that went on beside each other, though their entry's policy is against it."""
    wrong = []
    for name in ONE_AT_A_TIME:
        for before, run in pairwise(run for run in story.runs_of(TASK) if run.about[0] == name):
            if run.began < story.end_of(before):
                if story.knew(before, run):
                    wrong.append(f"{run} overlaps {before}")
                else:
                    report.allowed[UNKNOWN] += 1
    return wrong


def _due(entry: Fact) -> list[Slot]:
    """Return the slots of an entry up to the last one that is accounted for."""
    step = _micros(STEPS[entry["entry"]])
    first = 0 if entry["entry"] == "minute" else _micros(entry["anchor"])
    since, last = _micros(entry["since"]), _micros(entry["last_slot"] or entry["since"])
    return [(entry["entry"], at) for at in range(first + (max(0, since - first) // step + 1) * step, last + 1, step)]


def _slots_of(row: Fact) -> list[Slot]:
    instants = range(_micros(row["slot"]), _micros(row["through"]) + 1, _micros(STEPS[row["entry"]]))
    return [(row["entry"], at) for at in instants]


def slot_of(fact: Fact) -> Slot:
    """Return which slot a row of the ledger, or a message, is about."""
    at = fact["slot"]
    return fact["entry"], _micros(at if isinstance(at, float) else datetime.fromisoformat(at).timestamp())


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _words(slot: Slot) -> str:
    return f"{slot[0]} of {datetime.fromtimestamp(slot[1] / 1e6, timezone.utc).isoformat()}"
