"""A history, sorted by who told of what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

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
    """One run of a task.

    Attributes:
        task: its name.
        id: of the task; the same for each delivery.
        about: what it was sent for.
        node: where it ran.
        began: monotonic seconds.
        ended: the same, or infinite if it did not come to its end.
        term: leader-only: under which it was begun.
        trusted: leader-only: whether that was the present term.

    """

    task: str
    id: str
    about: About
    node: str
    began: float
    ended: float
    term: int
    trusted: bool

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
        # Redis loses messages: kombu pops one before it is noted that it was taken.
        self.on_redis = any(fact["broker"] == "valkey" for fact in self.of("run"))
        self.runs = self._runs()
        self.done = {(run.task, run.about) for run in self.runs if run.done}
        # From each connection that breaks, it loses one message at most.
        broken = [f for f in self.faults if f["kind"] == "kill" or f.get("link") == "broker"] + self.of("died")
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
        """Return when a run ended, or was killed; if nothing is known of it, when it began."""
        if run.done:
            return run.ended
        deaths = [f["at"] for f in self.faults if f["kind"] == "kill" and f["node"] == run.node]
        return min((at for at in deaths if at >= run.began), default=run.began)

    def died(self, run: Run) -> bool:
        """Tell whether the worker of a run died during the run, or just after."""
        until = self.end_of(run) + WRITTEN_WITHIN
        kills = (f for f in self.faults if f["kind"] == "kill" and f["node"] == run.node)
        # That a worker has ended by itself is only seen some time later.
        others = (f for f in self.of("died") if f["node"] == run.node and f["at"] < until + 10)
        return any(f["began"] <= until and f["at"] >= run.began for f in kills) or any(
            f["at"] >= run.began for f in others
        )

    def knew(self, first: Run, second: Run) -> bool:
        """Tell whether the worker of a second run could know of the first: not if the database is away or it died."""
        return not (
            self.died(first)
            or self.postgres_away(first.began, first.ended + WRITTEN_WITHIN)
            or self.partitioned(first.node, first.began, first.ended + WRITTEN_WITHIN)
            or self.postgres_away(second.began - WRITTEN_WITHIN, second.began)
            or self.partitioned(second.node, second.began - GUARD_PATIENCE, second.began)
        )

    def postgres_away(self, since: float, until: float) -> bool:
        """Tell whether Postgres was down at some time of these."""
        return any(f["began"] <= until and f["at"] >= since for f in self.faults if f["kind"] in POSTGRES)

    def partitioned(self, node: str, since: float, until: float) -> bool:
        """Tell whether a worker had no line to Postgres, or a bad one, at some time of these."""
        return any(
            fault["began"] <= until and fault["at"] >= since
            for fault in self.faults
            if fault["kind"] in PARTITIONS and fault["link"] == "postgres" and fault["node"] == node
        )

    def stopped(self, node: str, since: float, until: float) -> bool:
        """Tell whether a worker was stopped at some time of these."""
        return any(
            fault["began"] <= until and fault["at"] >= since
            for fault in self.faults
            if fault["kind"] == "stop" and fault["node"] == node
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
            )
            for fact in self.of("began")
        ]
        return sorted(runs, key=lambda run: run.began)


def about(fact: Fact) -> About:
    """Return what a message or a run was sent for."""
    return (fact["entry"], fact["slot"]) if "slot" in fact else (fact["name"],)
