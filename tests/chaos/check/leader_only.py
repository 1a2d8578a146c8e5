"""Leader-only tasks run where the lead is trusted, and not beside those of an earlier leader that lives on."""

from __future__ import annotations

from tests.chaos.check.report import Report, in_ms
from tests.chaos.check.story import PARTITIONS, Run, Story, about, lost

TASK = "chaos.lead"
# Between the question whether this node leads and the first line of the task.
BEGUN_WITHIN = 0.25
# Between the worker's acknowledgement and the moment at which the broker has it.
ACKNOWLEDGED_WITHIN = 1.0
# The reason that a leader gives which stood still for longer than its ttl, though nobody had stopped it.
LATE = "no renewal within the trust window"


def check(story: Story, report: Report) -> None:
    """Look at each run."""
    sent, runs = story.sent(TASK), story.runs_of(TASK)
    missing = lost(story, report, TASK, sent)
    off_leader = [f"off the leader: {run}" for run in runs if _is_off_leader(story, report, run)]
    overlaps = [f"beside each other: {run} and {over}" for run in runs if (over := _overlap(story, report, run, runs))]
    repeats = _repeats(story, report, runs)
    report.leader_only.update(
        sent=len(sent),
        ran=sum((TASK, (name,)) in story.done for name in sent),
        ran_off_leader=len(off_leader),
        overlaps=len(overlaps),
        repeated=len(repeats),
    )
    report.restore_ms = in_ms(
        {"gained to start": _to_first_start(story, runs), "kill to restart": _to_restart(story, runs)}
    )
    report.offences += [f"leader_only: {what}" for what in (*missing, *off_leader, *overlaps, *repeats)]


def _is_off_leader(story: Story, report: Report, run: Run) -> bool:
    elsewhere = any(fact["term"] == run.term and fact["node"] != run.node for fact in story.gained)
    later = any(fact["term"] > run.term and fact["at"] < run.began for fact in story.gained)
    if run.trusted:
        return elsewhere or later
    # The worker asks, then begins; what happens in between is not promised.
    ends = [fact["at"] for fact in story.of("lost") if fact["term"] == run.term]
    ends += [fact["at"] for fact in story.faults if fact["kind"] == "stop" and fact["node"] == run.node]
    ending = any(0 <= run.began - end < BEGUN_WITHIN for end in ends)
    return not _is_allowed(report, "began", {"as trust ended": ending})


def _overlap(story: Story, report: Report, run: Run, runs: list[Run]) -> Run | None:
    """Return a run of a later term that began during this one, if it should have waited."""
    over = next((o for o in runs if o.term > run.term and run.began <= o.began < story.end_of(run)), None)
    if over is None:
        return None
    # A leader that lives on and can reach Postgres keeps the turn until its runs have ended.
    ways = {
        "died": story.died(run),
        "was stopped": story.harmed(run.began, over.began, {"stop"}, run.node),
        "was cut off": story.cut_off(run.node, run.began, over.began),
        "was late": any(fact["term"] == run.term and fact["reason"] == LATE for fact in story.of("lost")),
    }
    return None if _is_allowed(report, "went on when their leader", ways) else over


def _repeats(story: Story, report: Report, runs: list[Run]) -> list[str]:
    """Return runs of a task that had been begun before, without a reason."""
    wrong = []
    earlier: dict[str, Run] = {}
    after = {name: fact.get("after") for name, fact in story.sent(TASK).items()}
    repeated = set()
    for run in runs:
        name = run.about[0]
        before, earlier[name] = earlier.get(name), run
        if before is not None:
            ways = {**_ways_to_repeat(story, before), "the link before was repeated": after.get(name) in repeated}
            repeated.add(name)
            if not _is_allowed(report, "were repeated:", ways):
                wrong.append(f"repeated: {before} and {run}")
    return wrong


def _ways_to_repeat(story: Story, before: Run) -> dict[str, bool]:
    # A delivery is of one connection to the broker, and can be acknowledged there only.
    came = [
        f for f in story.of("received") if f["task"] == TASK and about(f) == before.about and f["at"] <= before.began
    ]
    since = came[-1]["at"] if came else before.began
    acknowledged = [f["at"] for f in story.of("acknowledged") if (f["id"], f["node"]) == (before.id, before.node)]
    until = min((at for at in acknowledged if at >= before.began), default=float("inf")) + ACKNOWLEDGED_WITHIN
    return {
        "the worker died": not before.done,
        "an acknowledgement was lost": story.harmed(since, until, {"broker-restart"})
        or story.harmed(since, until, {"kill"}, before.node)
        or story.harmed(since, until, PARTITIONS, before.node, "broker")
        or story.died(before),
        # One that is stopped gives back what it has not begun when it is resumed, though the next leader may be at it.
        "a worker was stopped": any(story.harmed(f["at"], until, {"stop"}, f["node"]) for f in came[-2:]),
        "the worker was cut off": story.cut_off(before.node, since, until),
        "it was sent twice": any((fact["name"],) == before.about for fact in story.of("in doubt")),
    }


def _is_allowed(report: Report, what: str, ways: dict[str, bool]) -> bool:
    """Tell whether one of these ways of coming to it is true, and note the first that is."""
    for way in (way for way, is_true in ways.items() if is_true):
        report.allowed[f"leader-only runs that {what} {way}"] += 1
        return True
    return False


def _to_first_start(story: Story, runs: list[Run]) -> list[float]:
    """Return how long after leadership began, with tasks waiting, the first of them began."""
    seconds = []
    for fact in story.gained:
        first = next((run for run in runs if run.term == fact["term"]), None)
        begun = {run.about[0] for run in runs if run.began < fact["at"]}
        due = (sent for sent in story.sent(TASK).values() if sent["at"] < fact["at"] and sent.get("due", True))
        if first is not None and any(sent["name"] not in begun for sent in due):
            seconds.append(first.began - fact["at"])
    return seconds


def _to_restart(story: Story, runs: list[Run]) -> list[float]:
    """Return how long after a kill the tasks that it interrupted began again."""
    seconds = []
    for fault in (fault for fault in story.faults if fault["kind"] == "kill"):
        at = fault["began"]
        for run in (run for run in runs if run.node == fault["node"] and run.began < at < run.ended):
            again = [other.began for other in runs if other.about == run.about and other.began > run.began]
            # One that had died in an earlier fault was run again before this one.
            if again and min(again) > at:
                seconds.append(min(again) - at)
    return seconds
