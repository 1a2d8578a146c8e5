"""What became of every notification: read from what was written and what was run, by somebody who made no fault."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.relaying.clients import Written

Name = tuple[int, int]


@dataclass
class Count:
    """Notifications by what became of them.

    Attributes:
        written: durable ones whose transaction was committed.
        lost: of those, those that were never run.
        lost_on_the_way: never run either, but no consumer has received them. Redis lets go of a message before the
            consumer has it: from each connection that breaks, it loses one at most.
        unwritten: run, though their transaction was not committed.
        run_twice: run more than once, though the guard could tell.
        run_unguarded: run more than once, and the worker said of it that the database was away: it could not tell.
        ids: task ids of one notification beyond its first: they would not be told to be the same.
        redelivered: deliveries that repeat an earlier one, under the same task id.
        out_of_order: first deliveries within a key that came before one that had been committed when they were begun.
        dead: dead letters.
        raw_sent: raw notifications that were sent, one with each durable one.
        raw_lost: of those, those that nobody heard.
        raw_heard_twice: heard more than once.

    """

    written: int = 0
    lost: int = 0
    lost_on_the_way: int = 0
    unwritten: int = 0
    run_twice: int = 0
    run_unguarded: int = 0
    ids: int = 0
    redelivered: int = 0
    out_of_order: int = 0
    dead: int = 0
    raw_sent: int = 0
    raw_lost: int = 0
    raw_heard_twice: int = 0

    @property
    def faultless(self) -> bool:
        """Whether nothing was lost, run twice or out of order; of raw notifications nothing is promised."""
        return not (self.lost or self.unwritten or self.run_twice or self.ids or self.out_of_order or self.dead)


def read_facts(path: Path) -> list[dict[str, Any]]:
    """Return what was told, in order; a last line that is not whole yet is left out."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def count_notifications(
    written: Sequence[Written],
    facts: Iterable[dict[str, Any]],
    dead: int,
    unguarded: Collection[int] = (),
    redis_may_lose: int = 0,
) -> Count:
    """Return what became of everything that was written.

    Args:
        written: durable notifications, and as many raw ones.
        facts: what the consumer has told.
        dead: dead letters.
        unguarded: ids of those of which the worker said that it could not ask, or not write down, whether they ran.
        redis_may_lose: connections between Redis and the consumer that were broken.

    """
    by_name = {(item.client, item.number): item for item in written}
    ids: dict[Name, Counter[str]] = defaultdict(Counter)
    runs: Counter[Name] = Counter()
    known: Counter[Name] = Counter()
    heard: Counter[Name] = Counter()
    first: dict[str, list[Name]] = defaultdict(list)
    for fact in facts:
        name = fact["client"], fact["number"]
        if fact["what"] == "run":
            runs[name] += 1
            known[name] += fact["notification"] not in unguarded
        elif fact["what"] == "heard":
            heard[name] += 1
        else:
            if name not in ids:
                first[fact["key"]].append(name)
            ids[name][fact["id"]] += 1
    lost = len(by_name.keys() - runs.keys())
    on_the_way = min(len(by_name.keys() - ids.keys()), redis_may_lose)
    return Count(
        written=len(by_name),
        lost=lost - on_the_way,
        lost_on_the_way=on_the_way,
        unwritten=len(runs.keys() - by_name.keys()),
        run_twice=sum(number > 1 for number in known.values()),
        run_unguarded=sum(number > 1 and not known[name] for name, number in runs.items()),
        ids=sum(len(some) - 1 for some in ids.values()),
        redelivered=sum(sum(some.values()) - len(some) for some in ids.values()),
        out_of_order=sum(
            _out_of_order([by_name[name] for name in names if name in by_name]) for names in first.values()
        ),
        dead=dead,
        raw_sent=len(by_name),
        raw_lost=len(by_name.keys() - heard.keys()),
        raw_heard_twice=sum(number > 1 for number in heard.values()),
    )


def _out_of_order(delivered: Sequence[Written]) -> int:
    """Return how many were delivered before one that had been committed when they were begun."""
    # Of two whose transactions overlap, either may be the first.
    misplaced = 0
    soonest = float("inf")
    for item in reversed(delivered):
        misplaced += soonest < item.began
        soonest = min(soonest, item.ended)
    return misplaced
