"""Leader-only tasks run where the lead is trusted, and not beside those of an earlier leader that lives on."""

from __future__ import annotations

from tests.chaos.check.deliveries import lost
from tests.chaos.check.report import Report
from tests.chaos.check.story import Run, Story

TASK = "chaos.lead"
# Between the question whether this node leads and the first line of the task.
BEGUN_WITHIN = 0.25


def check(story: Story, report: Report) -> None:
    """Look at each run."""
    sent, runs = story.sent(TASK), story.runs_of(TASK)
    missing = lost(story, report, TASK, sent)
    off_leader = [f"off the leader: {run}" for run in runs if _is_off_leader(story, report, run)]
    overlaps = [f"beside each other: {run} and {over}" for run in runs if (over := _overlap(story, report, run, runs))]
    report.leader_only.update(
        sent=len(sent),
        ran=sum((TASK, (name,)) in story.done for name in sent),
        ran_off_leader=len(off_leader),
        overlaps=len(overlaps),
    )
    report.offences += [f"leader_only: {what}" for what in (*missing, *off_leader, *overlaps)]


def _is_off_leader(story: Story, report: Report, run: Run) -> bool:
    elsewhere = any(fact["term"] == run.term and fact["node"] != run.node for fact in story.gained)
    later = any(fact["term"] > run.term and fact["at"] < run.began for fact in story.gained)
    if run.trusted:
        return elsewhere or later
    # The worker asks, then begins; what happens in between is not promised.
    ends = [fact["at"] for fact in story.of("lost") if fact["term"] == run.term]
    ends += [fact["at"] for fact in story.faults if fact["kind"] == "stop" and fact["node"] == run.node]
    if not any(0 <= run.began - end < BEGUN_WITHIN for end in ends):
        return True
    report.allowed["leader-only runs that began as trust ended"] += 1
    return False


def _overlap(story: Story, report: Report, run: Run, runs: list[Run]) -> Run | None:
    """Return a run of a later term that began during this one, if it should have waited."""
    over = next((o for o in runs if o.term > run.term and run.began <= o.began < story.end_of(run)), None)
    if over is None:
        return None
    # A leader that lives on and can reach Postgres keeps the turn until its runs have ended.
    cut_short = (
        story.died(run)
        or story.stopped(run.node, run.began, over.began)
        or story.postgres_away(run.began, over.began)
        or story.partitioned(run.node, run.began, over.began)
    )
    if not cut_short:
        return over
    report.allowed["leader-only runs that went on when the lead was lost"] += 1
    return None
