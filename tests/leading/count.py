"""What became of every leader-only task: read from what was written down, by somebody who made none of the faults."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

# A run is acknowledged a moment after its end; a worker that dies in between takes that along.
ACKNOWLEDGED_WITHIN = 1.0
# The same with the solo pool, where acknowledgements wait for the runs of all messages that came together.
ACKNOWLEDGED_WITHIN_SOLO = 5.0
# What ends a leadership without a chance to finish.
OUTRIGHT = {"kill", "kill main", "stop"}
# The reason that a leader gives which stood still for longer than its ttl, though nobody had stopped it.
LATE = "no renewal within the trust window"


@dataclass
class Run:
    """One run of one task.

    Attributes:
        key: of the task.
        node: where it ran.
        term: under which it was begun.
        trusted: whether its node trusted its leadership when it began.
        began: monotonic seconds.
        ended: the same, or none if the process died in it.

    """

    key: int
    node: str
    term: int
    trusted: bool
    began: float
    ended: float | None = None


@dataclass(frozen=True)
class Fault:
    """Something that was done to a leader, or to the broker.

    Attributes:
        kind: what.
        node: to whom; empty for the broker.
        at: monotonic seconds.
        until: when it was over: the process resumed, the broker back.

    """

    kind: str
    node: str
    at: float
    until: float


@dataclass
class Times:
    """Some durations, in seconds."""

    number: int = 0
    median: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Sum up."""
        return cls(len(seconds), round(median(seconds), 3), round(max(seconds), 3)) if seconds else cls()


@dataclass
class Count:
    """Tasks and runs by what became of them.

    Attributes:
        sent: tasks, each link of a chain being one.
        ran: of those, those of which a run came to its end.
        lost: of those, those of which none did, and that a leader had received.
        lost_on_the_way: the same, but no worker has received them. Redis lets go of a message before the worker has
            noted it, so one that is on its way to a worker that is killed, or when Redis stops, is lost to kombu.
        terms: how many there were.
        ran_off_leader: runs begun without trust, or after another node had gained a later term.
        overlaps: runs that went on when one of a later term began, by how their own term had ended: their node was
            killed or stopped outright, or was too late to renew its lead, or in any other way.
        repeated: runs of a task that had been begun before, by what had become of the earlier run or the link before.
        gained_to_start: from gaining leadership, with tasks waiting, to the first start of one.
        kill_to_restart: from `kill -9` to the next start of a task that was interrupted by it.
        offences: the details of what is not allowed.

    """

    sent: int = 0
    ran: int = 0
    lost: int = 0
    lost_on_the_way: int = 0
    terms: int = 0
    ran_off_leader: int = 0
    overlaps: dict[str, int] = field(default_factory=lambda: {"killed_or_stopped": 0, "late": 0, "other": 0})
    repeated: dict[str, int] = field(
        default_factory=lambda: {
            "died": 0,
            "acknowledgement_lost": 0,
            "stopped": 0,
            "sent_twice": 0,
            "link_before": 0,
            "other": 0,
        }
    )
    gained_to_start: Times = field(default_factory=Times)
    kill_to_restart: Times = field(default_factory=Times)
    offences: list[str] = field(default_factory=list)

    @property
    def faultless(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.ran_off_leader or self.overlaps["other"] or self.repeated["other"])


def read_facts(path: Path) -> list[dict[str, Any]]:
    """Return what was told, in order; a last line that is not whole yet is left out."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def count_tasks(facts: Iterable[dict[str, Any]], acknowledged_within: float = ACKNOWLEDGED_WITHIN) -> Count:
    """Return what became of everything that was sent.

    Args:
        facts: what was told.
        acknowledged_within: seconds from the end of a run until its acknowledgement has reached the broker.

    """
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for fact in facts:
        told[fact["what"]].append(fact)
    runs = _runs(told)
    faults = [Fault(fact["kind"], fact["node"], fact["began"], fact["at"]) for fact in told["fault"]]
    sent = {fact["key"] for fact in told["sent"]}
    count = Count(sent=len(sent), terms=len(told["gained"]))
    ended = {run.key for run in runs if run.ended is not None}
    count.ran = len(sent & ended)
    received = {fact["key"] for fact in told["received"]}
    count.lost = len((sent & received) - ended)
    count.lost_on_the_way = len(sent - received - ended)
    count.offences += [f"lost: {key}" for key in sorted(sent - ended)]
    _count_off_leader(count, runs, told["gained"], faults)
    _count_overlaps(count, runs, told, faults)
    # A delivery is of one connection to the broker, and can be acknowledged there only.
    deliveries = [(fact["key"], fact["at"]) for fact in told["received"]]
    in_hand = {
        id(run): (
            max((at for key, at in deliveries if key == run.key and at <= run.began), default=run.began),
            (run.ended or run.began) + acknowledged_within,
        )
        for run in runs
    }
    _count_repeated(
        count,
        runs,
        in_hand,
        faults,
        {fact["key"] for fact in told["in doubt"]},
        {fact["key"]: fact["after"] for fact in told["sent"] if fact["after"] is not None},
    )
    count.gained_to_start = Times.of(_to_first_start(runs, told))
    count.kill_to_restart = Times.of(_to_restart(runs, faults))
    return count


def _runs(told: dict[str, list[dict[str, Any]]]) -> list[Run]:
    runs = {
        fact["run"]: Run(fact["key"], fact["node"], fact["term"], fact["trusted"], fact["at"]) for fact in told["began"]
    }
    for fact in told["ended"]:
        runs[fact["run"]].ended = fact["at"]
    return sorted(runs.values(), key=lambda run: run.began)


def _end_of(run: Run, faults: Sequence[Fault]) -> float:
    """Return when a run ended, or its process died."""
    if run.ended is not None:
        return run.ended
    deaths = [fault.at for fault in faults if fault.node == run.node and fault.at >= run.began and "kill" in fault.kind]
    return min(deaths, default=float("inf"))


def _count_off_leader(count: Count, runs: Sequence[Run], gained: Sequence[dict[str, Any]], faults: list[Fault]) -> None:
    for run in runs:
        later = [fact["at"] for fact in gained if fact["term"] > run.term and fact["at"] < run.began]
        wrong_node = any(fact["term"] == run.term and fact["node"] != run.node for fact in gained)
        # One that is stopped between the question and the first line of the task was leader when it asked.
        frozen = any(f.kind == "stop" and f.node == run.node and f.until <= run.began < f.until + 0.2 for f in faults)
        if wrong_node or not run.trusted or (later and not frozen):
            count.ran_off_leader += 1
            count.offences.append(f"off leader: {run}, later terms were gained at {later}")


def _count_overlaps(
    count: Count, runs: Sequence[Run], told: dict[str, list[dict[str, Any]]], faults: Sequence[Fault]
) -> None:
    gained = {fact["term"]: fact["at"] for fact in told["gained"]}
    reasons = {fact["term"]: fact["reason"] for fact in told["lost"]}
    for run in runs:
        end = _end_of(run, faults)
        over = next((other for other in runs if other.term > run.term and run.began <= other.began < end), None)
        if over is None:
            continue
        began = gained.get(run.term, run.began)
        ended = min((at for term, at in gained.items() if term > run.term), default=over.began)
        if any(f.kind in OUTRIGHT and f.node == run.node and began <= f.at <= ended for f in faults):
            which = "killed_or_stopped"
        else:
            which = "late" if reasons.get(run.term) == LATE else "other"
        count.overlaps[which] += 1
        if which == "other":
            why = reasons.get(run.term, "nothing that was told")
            count.offences.append(f"overlap after {why}: {run} and {over}")


def _count_repeated(
    count: Count,
    runs: Sequence[Run],
    in_hand: dict[int, tuple[float, float]],
    faults: Sequence[Fault],
    in_doubt: set[int],
    after: dict[int, int],
) -> None:
    earlier: dict[int, Run] = {}
    repeated: set[int] = set()
    for run in runs:
        before = earlier.get(run.key)
        if before is not None:
            why = _why_repeated(before, in_hand[id(before)], faults, in_doubt)
            if why == "other" and after.get(run.key) in repeated:
                why = "link_before"
            repeated.add(run.key)
            count.repeated[why] += 1
            if why == "other":
                count.offences.append(f"repeated: {before} and {run}")
        earlier[run.key] = run


def _why_repeated(before: Run, in_hand: tuple[float, float], faults: Sequence[Fault], in_doubt: set[int]) -> str:
    if before.ended is None:
        return "died"
    during = [f for f in faults if f.until >= in_hand[0] and f.at <= in_hand[1]]
    if any(not f.node or (f.node == before.node and "kill" in f.kind) for f in during):
        return "acknowledgement_lost"
    if any(f.node == before.node and f.kind == "stop" for f in during):
        return "stopped"
    return "sent_twice" if before.key in in_doubt else "other"


def _to_first_start(runs: Sequence[Run], told: dict[str, list[dict[str, Any]]]) -> list[float]:
    seconds = []
    for fact in told["gained"]:
        first = next((run for run in runs if run.term == fact["term"]), None)
        begun = {run.key for run in runs if run.began < fact["at"]}
        waiting = any(sent["at"] < fact["at"] and sent["due"] and sent["key"] not in begun for sent in told["sent"])
        if first is not None and waiting:
            seconds.append(first.began - fact["at"])
    return seconds


def _to_restart(runs: Sequence[Run], faults: Sequence[Fault]) -> list[float]:
    seconds = []
    for fault in faults:
        if "kill" not in fault.kind:
            continue
        for run in runs:
            if run.node == fault.node and run.began < fault.at and (run.ended is None or run.ended > fault.at):
                again = [other.began for other in runs if other.key == run.key and other.began > fault.at]
                # One that had died in an earlier fault was run again before this one.
                if again and not any(o.key == run.key and run.began < o.began < fault.at for o in runs):
                    seconds.append(min(again) - fault.at)
    return seconds
