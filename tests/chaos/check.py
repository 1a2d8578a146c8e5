"""Whether the promises were kept, read from the history of a run, by somebody who made none of the faults.

python -m tests.chaos.check HISTORY
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from tests.chaos.history import Fact, History

STEPS = {"plain": 1.0, "each": 1.0, "brief": 1.0, "single": 1.0, "patient": 2.0, "minute": 60.0}
# What is sent once makes one run of each of these.
RUNS = {
    "chaos.handle": ("chaos.handle", "chaos.witness"),
    "chaos.lead": ("chaos.lead",),
    "chaos.work": ("chaos.work",),
}
DEDUPLICATED = {"each", "patient"}
# What costs a leader its lead; of some only where it is cut off from Postgres.
COSTLY = {"kill", "term", "stop", "terminate", "pg-restart", "pg-crash"}
PARTITIONS = {"partition", "deaf"}
POSTGRES = {"pg-restart", "pg-crash"}
# Between the end of a run and the moment at which that is written down, and the broker told.
WRITTEN_WITHIN = 1.0
# A guard waits for so long for a database that does not answer, and then runs the task.
GUARD_PATIENCE = 12.0
# Between the question whether this node leads and the first line of the task.
BEGUN_WITHIN = 0.25

KOMBUS_OWN = "AttributeError(\"'NoneType' object has no attribute 'hostname'\")"

# The name of an entry, and microseconds since 1970.
Slot: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class Run:
    """One run of a task.

    Attributes:
        task: its name.
        id: of the task; the same for each delivery.
        about: what it was sent for: a name, or an entry and its slot.
        node: where it ran.
        began: monotonic seconds.
        ended: the same, or infinite if it did not come to its end.
        term: leader-only: under which it was begun.
        trusted: leader-only: whether that was the present term.

    """

    task: str
    id: str
    about: tuple[str, ...]
    node: str
    began: float
    ended: float
    term: int
    trusted: bool


@dataclass
class Report:
    """What became of everything; the names are those of the program's output."""

    terms: dict[str, Any] = field(default_factory=lambda: {"monotonic": True, "trusted_overlap_ms": 0.0})
    slots: Counter[str] = field(
        default_factory=lambda: Counter(due=0, published=0, skipped=0, expired=0, duplicates=0, unaccounted=0)
    )
    notifications: Counter[str] = field(
        default_factory=lambda: Counter(sent=0, handled=0, duplicates=0, lost=0, out_of_order=0)
    )
    leader_only: Counter[str] = field(default_factory=lambda: Counter(sent=0, ran=0, ran_off_leader=0, overlaps=0))
    faults: Counter[str] = field(default_factory=Counter)
    failover_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    workers_died: int = 0
    tasks_failed: int = 0
    # What is not promised, and did happen.
    allowed: Counter[str] = field(default_factory=Counter)
    # The details of every broken promise.
    offences: list[str] = field(default_factory=list)

    @property
    def faultless(self) -> bool:
        """Whether every promise was kept."""
        return not self.offences


class Checker:
    """Reads one history."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        """Sort the facts."""
        self._told: dict[str, list[Fact]] = defaultdict(list)
        for fact in facts:
            self._told[fact["what"]].append(fact)
        self._gained = sorted(self._told["gained"], key=lambda fact: fact["at"])
        self._faults = sorted(self._told["fault"], key=lambda fact: fact["began"])
        self._received = {(fact["task"], _about(fact)) for fact in self._told["received"]}
        self._runs = _runs(self._told)
        self._ended = {(run.task, run.about) for run in self._runs if run.ended < float("inf")}
        # kombu pops a message from Redis before it is noted that it was taken.
        self._broker_loses = any(fact["broker"] == "valkey" for fact in self._told["run"])
        self._report = Report()

    def check(self) -> Report:
        """Return what became of everything."""
        self._check_terms()
        self._check_trust()
        self._check_slots()
        self._check_notifications()
        self._check_order()
        self._check_leader_only()
        self._check_work()
        self._check_recovery()
        report = self._report
        report.faults = Counter(fact["kind"] for fact in self._faults)
        report.failover_ms = self._failovers()
        return report

    def _offend(self, what: str) -> None:
        self._report.offences.append(what)

    def _check_terms(self) -> None:
        ledger = {fact["term"]: fact for fact in self._told["ledger term"]}
        rising = [before["term"] < after["term"] for before, after in pairwise(self._gained)]
        written = [fact["gained_at"] for _, fact in sorted(ledger.items())]
        known = [ledger.get(fact["term"], {}).get("node") == fact["node"] for fact in self._gained]
        self._report.terms["monotonic"] = all(rising) and written == sorted(written) and all(known)
        if not self._report.terms["monotonic"]:
            self._offend(f"terms: {[(f['term'], f['node'], f['at']) for f in self._gained]}, ledger {ledger}")

    def _check_trust(self) -> None:
        """Find terms that were trusted after a later one was."""
        windows: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for fact in self._told["trusted"]:
            windows[fact["term"]].append((fact["since"], fact["until"]))
        spans = {term: (min(s for s, _ in some), max(u for _, u in some)) for term, some in windows.items()}
        for term, own in windows.items():
            for later, (since, until) in spans.items():
                if later > term:
                    # To be trusted for a moment, both at once, is enough.
                    seconds = max(min(u, until) - max(s, since) for s, u in own)
                    if seconds > 0:
                        self._report.terms["trusted_overlap_ms"] = max(
                            self._report.terms["trusted_overlap_ms"], round(seconds * 1000, 1)
                        )
                        self._offend(
                            f"trust: terms {term} and {later} were trusted at once for {seconds * 1000:.1f} ms"
                        )

    def _check_slots(self) -> None:
        accounted, under_way = self._account()
        entries = {fact["entry"]: fact for fact in self._told["ledger entry"]}
        for name, entry in entries.items():
            for instant in _instants(entry, STEPS[name]):
                # What was claimed just before the ledger was copied is not counted.
                self._report.slots["due"] += (name, instant) not in under_way
                if not accounted[name, instant]:
                    self._count("slots", "unaccounted", f"{name} of {_iso(instant / 1e6)} is not in the ledger")
        for (name, instant), number in accounted.items():
            if number > 1:
                self._count("slots", "duplicates", f"{name} of {_iso(instant / 1e6)} is in the ledger {number} times")
        for fact in self._told["received"]:
            if "slot" in fact:
                instant = _micros(datetime.fromisoformat(fact["slot"]).timestamp())
                # Later ones came when the ledger had been copied.
                last = entries.get(fact["entry"], {}).get("last_slot") or 0.0
                if instant <= _micros(last) and not accounted[fact["entry"], instant]:
                    self._count("slots", "duplicates", f"{fact['entry']} of {fact['slot']} was sent, and never claimed")
        self._check_ids("chaos.tick", "slots")
        self._check_repeated([r for r in self._runs if r.task == "chaos.tick" and r.about[0] in DEDUPLICATED], "slots")

    def _account(self) -> tuple[Counter[Slot], set[Slot]]:
        """Return how often each slot is in the ledger, and which are just being published."""
        accounted: Counter[Slot] = Counter()
        under_way = set()
        for row in self._told["ledger slot"]:
            step = STEPS[row["entry"]]
            for number in range(round((row["through"] - row["slot"]) / step) + 1):
                accounted[row["entry"], _micros(row["slot"] + number * step)] += 1
            if row["state"] != "claimed":
                self._report.slots[row["state"]] += row["slots"]
            elif row["old"]:
                self._count("slots", "unaccounted", f"{row['entry']} of {_iso(row['slot'])} was never published")
            else:
                under_way.add((row["entry"], _micros(row["slot"])))
            if row["state"] == "published":
                self._check_arrival(row["entry"], _iso(row["slot"]))
        return accounted, under_way

    def _check_notifications(self) -> None:
        sent = {fact["name"] for fact in self._told["sent"] if fact["task"] == "chaos.handle"}
        notifications = self._report.notifications
        notifications["sent"] = len(sent)
        notifications["handled"] = sum(("chaos.handle", (name,)) in self._ended for name in sent)
        for name in sorted(sent):
            for task in RUNS["chaos.handle"]:
                self._check_run(task, name, "notifications", "lost")
        for letter in self._told["dead letter"]:
            self._offend(f"notifications: {letter['name']} is a dead letter: {letter['error']}")
        for task, (name, *_) in self._ended:
            if task in RUNS["chaos.handle"] and name not in sent:
                self._offend(f"notifications: {name} was run by {task}, and never committed")
        for task in (*RUNS["chaos.handle"], "chaos.hear"):
            self._check_ids(task, "notifications")
        self._check_repeated([run for run in self._runs if run.task == "chaos.handle"], "notifications")

    def _check_order(self) -> None:
        """Find first deliveries that came before one that had been committed when they were begun."""
        sent = {fact["name"]: fact for fact in self._told["sent"] if fact["task"] == "chaos.handle"}
        first: dict[str, dict[str, Fact]] = defaultdict(dict)
        for fact in self._told["received"]:
            if fact["task"] == "chaos.witness" and fact["name"] in sent:
                first[fact["key"]].setdefault(fact["name"], sent[fact["name"]])
        for key, by_name in first.items():
            # Of two whose transactions overlap, either may be the first.
            soonest = float("inf")
            for name, fact in reversed(by_name.items()):
                if soonest < fact["began"]:
                    self._count("notifications", "out_of_order", f"{name} overtook another with the key {key}")
                soonest = min(soonest, fact["at"])

    def _check_leader_only(self) -> None:
        counted = self._report.leader_only
        sent = {fact["name"] for fact in self._told["sent"] if fact["task"] == "chaos.lead"}
        runs = [run for run in self._runs if run.task == "chaos.lead"]
        counted["sent"] = len(sent)
        counted["ran"] = sum(("chaos.lead", (name,)) in self._ended for name in sent)
        for name in sorted(sent):
            self._check_run("chaos.lead", name, "leader_only", "lost")
        leaders = {fact["term"]: fact for fact in self._gained}
        reasons = {fact["term"]: fact for fact in self._told["lost"]}
        for run in runs:
            self._check_leads(run, leaders, reasons)
            over = next((r for r in runs if r.term > run.term and run.began <= r.began < self._end_of(run)), None)
            if over is None:
                continue
            reason = reasons[run.term]["reason"] if run.term in reasons else "killed"
            # A leader that is asked to leave leaves when its runs have ended; other ends it cannot choose.
            if reason == "stopped":
                self._count("leader_only", "overlaps", f"{run} went on beside {over}")
            else:
                self._report.allowed["leader-only runs that went on when the lead was lost"] += 1

    def _check_leads(self, run: Run, leaders: dict[int, Fact], reasons: dict[int, Fact]) -> None:
        """See that a run was begun where the lead was trusted."""
        leader = leaders.get(run.term)
        later = [fact for fact in self._gained if fact["term"] > run.term and fact["at"] < run.began]
        if run.trusted and not later and (leader is None or leader["node"] == run.node):
            return
        # The worker asks, then begins; what happens in between is not promised.
        ends = [reasons[run.term]["at"]] if run.term in reasons else []
        ends += [fact["at"] for fact in self._faults if fact["kind"] == "stop" and fact["node"] == run.node]
        if not run.trusted and any(0 <= run.began - end < BEGUN_WITHIN for end in ends):
            self._report.allowed["leader-only runs that began as trust ended"] += 1
        else:
            self._count("leader_only", "ran_off_leader", f"{run}, later terms: {later}")

    def _check_work(self) -> None:
        for fact in self._told["sent"]:
            if fact["task"] == "chaos.work":
                self._check_run("chaos.work", fact["name"], "work", "lost")
        for fact in self._told["failed"]:
            self._report.tasks_failed += 1
            self._offend(f"tasks: {fact['task']}[{fact['id']}] failed: {fact['error']}")

    def _check_recovery(self) -> None:
        for fact in self._told["died"]:
            # Celery closes a connection that is broken a second time, where messages are in hand.
            if self._broker_loses and KOMBUS_OWN in (fact["error"] or ""):
                self._report.allowed["workers that kombu ended when it lost Redis"] += 1
            else:
                self._report.workers_died += 1
                how = "did not end" if fact["code"] is None else f"ended with {fact['code']}"
                self._offend(f"workers: {fact['node']} {how}: {fact['error']}")
        for fact in self._told["stuck"]:
            self._offend(f"recovery: {fact['why']}")
        if not self._told["recovered"]:
            self._offend("recovery: it did not come to that")

    def _check_run(self, task: str, name: str, group: str, kind: str) -> None:
        """See that what was sent came to its end."""
        if (task, (name,)) in self._ended:
            return
        if self._broker_loses and (task, (name,)) not in self._received:
            self._report.allowed["messages that Redis lost on the way"] += 1
        else:
            self._count(group, kind, f"{name} was not run by {task}")

    def _check_arrival(self, entry: str, slot: str) -> None:
        """See that what was published was received."""
        if ("chaos.tick", (entry, slot)) in self._received:
            return
        if self._broker_loses:
            self._report.allowed["messages that Redis lost on the way"] += 1
        else:
            self._count("slots", "unaccounted", f"{entry} of {slot} is published, and never came")

    def _check_ids(self, task: str, group: str) -> None:
        """See that all messages of one thing have one task id."""
        ids: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for fact in self._told["received"]:
            if fact["task"] == task:
                ids[_about(fact)].add(fact["id"])
        for about, several in ids.items():
            if len(several) > 1:
                self._count(group, "duplicates", f"{' of '.join(about)} was sent under {len(several)} task ids")

    def _check_repeated(self, runs: Sequence[Run], group: str) -> None:
        """See that what is not to be repeated was not, where the workers could know."""
        earlier: dict[str, Run] = {}
        for run in runs:
            before = earlier.get(run.id)
            if before is not None and before.ended < float("inf"):
                if self._knew(before, run):
                    self._count(group, "duplicates", f"{before} was repeated: {run}")
                else:
                    self._report.allowed["runs repeated while the database was away or the first worker died"] += 1
            earlier[run.id] = run

    def _knew(self, first: Run, second: Run) -> bool:
        """Tell whether the worker of a second run could know of the first."""
        for fault in self._faults:
            about_first = fault["began"] <= first.ended + WRITTEN_WITHIN
            away = fault["kind"] in POSTGRES or (fault["kind"] in PARTITIONS and fault["link"] == "postgres")
            if fault["kind"] == "kill" and fault["node"] == first.node and about_first and fault["at"] >= first.began:
                return False
            for run, until in ((first, first.ended + GUARD_PATIENCE), (second, second.began)):
                concerned = away and fault["node"] in {None, run.node}
                if concerned and fault["began"] <= until and fault["at"] >= run.began - GUARD_PATIENCE:
                    return False
        return True

    def _end_of(self, run: Run) -> float:
        """Return when a run ended, or its process died."""
        if run.ended < float("inf"):
            return run.ended
        deaths = [
            fault["at"]
            for fault in self._faults
            if fault["kind"] == "kill" and fault["node"] == run.node and fault["at"] >= run.began
        ]
        return min(deaths, default=float("inf"))

    def _count(self, group: str, kind: str, details: str) -> None:
        counter: Counter[str] | None = getattr(self._report, group, None)
        if counter is not None and kind in counter:
            counter[kind] += 1
        self._offend(f"{group}, {kind}: {details}")

    def _failovers(self) -> dict[str, dict[str, float]]:
        """Return, for each fault that cost a leader its lead, how long it took until the next had a term."""
        seconds: dict[str, list[float]] = defaultdict(list)
        for fault in self._faults:
            cut_off = fault["kind"] in PARTITIONS and fault["link"] == "postgres" and fault.get("how") != "slow"
            if fault["term"] is not None and (fault["kind"] in COSTLY or cut_off):
                later = [f["at"] for f in self._gained if f["term"] > fault["term"] and f["at"] >= fault["began"]]
                if later:
                    seconds[fault["kind"]].append(min(later) - fault["began"])
        return {
            kind: {"median": round(median(some) * 1000, 1), "max": round(max(some) * 1000, 1), "n": len(some)}
            for kind, some in sorted(seconds.items())
        }


def check(facts: Iterable[Fact]) -> Report:
    """Return what became of everything in a history."""
    return Checker(facts).check()


def awaited(facts: Iterable[Fact]) -> set[tuple[str, str]]:
    """Return tasks and names of which a run has yet to come to its end."""
    runs = {fact["run"]: (fact["task"], fact["name"]) for fact in facts if fact["what"] == "began" and "name" in fact}
    ended = {runs.get(fact["run"]) for fact in facts if fact["what"] == "ended"}
    sent = [fact for fact in facts if fact["what"] == "sent" and fact["task"] in RUNS]
    return {(task, fact["name"]) for fact in sent for task in RUNS[fact["task"]]} - ended


def _about(fact: Fact) -> tuple[str, ...]:
    return (fact["entry"], fact["slot"]) if "slot" in fact else (fact["name"],)


def _runs(told: dict[str, list[Fact]]) -> list[Run]:
    ended = {fact["run"]: fact["at"] for fact in told["ended"]}
    runs = [
        Run(
            fact["task"],
            fact["id"],
            _about(fact),
            fact["node"],
            fact["at"],
            ended.get(fact["run"], float("inf")),
            fact.get("term", 0),
            fact.get("trusted", False),
        )
        for fact in told["began"]
    ]
    return sorted(runs, key=lambda run: run.began)


def _instants(entry: Fact, step: float) -> Iterator[int]:
    """Give the slots of an entry up to the last one that is accounted for, in microseconds."""
    first = 0 if entry["entry"] == "minute" else _micros(entry["anchor"])
    since, last, width = _micros(entry["since"]), _micros(entry["last_slot"] or entry["since"]), _micros(step)
    instant = first + max(0, (since - first) // width) * width
    while instant <= last:
        if instant > since:
            yield instant
        instant += width


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


if __name__ == "__main__":
    found = check(History(Path(sys.argv[1])).catch_up())
    print(json.dumps(vars(found), indent=2))
    sys.exit(0 if found.faultless else 1)
