"""A history, sorted; and what holds for whatever is sent: it comes, has one task id, and is not repeated knowingly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.check.report import Report
from tests.chaos.history import Fact

# What a thing was sent for: its name, or an entry and its slot.
About = tuple[str, ...]

POSTGRES = {"pg-restart", "pg-crash"}
PARTITIONS = {"partition", "deaf"}
# Between the end of a run and the moment at which that is written down, and the broker told.
WRITTEN_WITHIN = 1.0
# A guard waits for so long for a database that is there and does not answer, and then runs the task.
GUARD_PATIENCE = 12.0
LOST_ON_THE_WAY = "messages that Redis lost on the way"
UNKNOWN = "runs repeated, or beside each other, while the database was away or a worker died"


@dataclass(frozen=True)
class Run:
    """One run of a task; it was sent for what it is about."""

    task: str
    id: str  # This is the same for each delivery.
    about: About
    node: str
    began: float
    ended: float  # This is infinite if it did not come to its end.
    term: int  # A leader-only run was begun under this one,
    trusted: bool  # and it was the present one or not.
    notification: int | None  # The run is for that of this number.

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return self.ended < float("inf")


class Story:
    """What was told, and what can be read off it."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        """Sort the facts."""
        self._told: dict[str, list[Fact]] = defaultdict(list)
        for fact in facts:
            self._told[fact["what"]].append(fact)
        self.gained = sorted(self.of("gained"), key=lambda fact: fact["at"])
        self.faults = sorted(self.of("fault"), key=lambda fact: fact["began"])
        self.run = next(iter(self.of("run")), {})
        # Redis loses messages: kombu pops one before it is noted that it was taken.
        self.on_redis = self.run.get("broker") == "valkey"
        self.unguarded = {fact["notification"] for fact in self.of("unguarded")}
        self.runs = self._runs()
        self.done = {(run.task, run.about) for run in self.runs if run.done}
        # From each connection that breaks, it loses one message at most; to some workers none is sent.
        broken = [f for f in self.faults if f["kind"] == "kill" or f.get("link") == "broker"] + self.of("died")
        broken = [fact for fact in broken if fact["node"] not in self.run.get("idle", ())]
        restarts = sum(fact["kind"] == "broker-restart" for fact in self.faults)
        self.redis_may_lose = len(broken) + restarts * len({fact["node"] for fact in self.of("received")})
        self.received = {(fact["task"], about(fact)) for fact in self.of("received")}

    def of(self, what: str) -> list[Fact]:
        """Return all facts of a kind, in order."""
        return self._told[what]

    def sent(self, task: str) -> dict[str, Fact]:
        """Return by its name what was sent to a task."""
        return {fact["name"]: fact for fact in self.of("sent") if fact["task"] == task}

    def runs_of(self, task: str) -> list[Run]:
        """Return all runs of a task, in the order in which they began."""
        return [run for run in self.runs if run.task == task]

    def end_of(self, run: Run) -> float:
        """Return when a run ended, or its worker died."""
        if run.done:
            return run.ended
        kills = [fault for fault in self.faults if fault["kind"] == "kill"]
        deaths = [fact["at"] for fact in (*kills, *self.of("died")) if fact["node"] == run.node]
        return min((at for at in deaths if at >= run.began), default=float("inf"))

    def died(self, run: Run) -> bool:
        """Tell whether the worker of a run died during the run, or just after."""
        until = self.end_of(run) + WRITTEN_WITHIN
        # That a worker has ended by itself is only seen some time later.
        return self.harmed(run.began, until, {"kill"}, run.node) or any(
            run.began <= fact["at"] < until + 10 for fact in self.of("died") if fact["node"] == run.node
        )

    def knew(self, first: Run, second: Run) -> bool:
        """Tell whether the worker of a second run could know of the first: not if the database is away or it died."""
        return not (
            self.died(first)
            or self.cut_off(first.node, first.began, first.ended + WRITTEN_WITHIN)
            or self.harmed(second.began - WRITTEN_WITHIN, second.began, POSTGRES)
            or self.harmed(second.began - GUARD_PATIENCE, second.began, PARTITIONS, second.node, "postgres")
        )

    def cut_off(self, node: str, since: float, until: float) -> bool:
        """Tell whether a worker had no line to Postgres, or a bad one, or Postgres was down, at some time of these."""
        return self.harmed(since, until, POSTGRES) or self.harmed(since, until, PARTITIONS, node, "postgres")

    def harmed(
        self, since: float, until: float, kinds: Collection[str], node: str | None = None, link: str | None = None
    ) -> bool:
        """Tell whether a server, or a node or a link of it, suffered one of these faults at some time of these."""
        return any(
            fault["began"] <= until and fault["at"] >= since
            for fault in self.faults
            if fault["kind"] in kinds and fault["node"] == node and fault.get("link") == link
        )

    def _runs(self) -> list[Run]:
        ended = {fact["run"]: fact["at"] for fact in self.of("ended")}
        runs = [
            Run(
                fact["task"],
                fact["id"],
                about(fact),
                fact["node"],
                fact["at"],
                ended.get(fact["run"], float("inf")),
                fact.get("term", 0),
                fact.get("trusted", False),
                fact.get("notification"),
            )
            for fact in self.of("began")
        ]
        return sorted(runs, key=lambda run: run.began)


def about(fact: Fact) -> About:
    """Return what a message or a run was sent for."""
    return (fact["entry"], fact["slot"]) if "slot" in fact else (fact["name"],)


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
