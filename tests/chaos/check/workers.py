"""No worker dies and no task fails, and afterwards all is well again."""

from __future__ import annotations

from tests.chaos.check.report import Report
from tests.chaos.check.story import LOST_ON_THE_WAY, Story, lost

TASK = "chaos.work"
# So many messages of the schedule may be on their way whenever one looks.
LEFT_OVER = 5
# Celery closes a connection that is broken a second time; kombu's for Redis cannot bear that with messages in hand.
KOMBUS_OWN = "AttributeError(\"'NoneType' object has no attribute 'hostname'\")"


def check(story: Story, report: Report) -> None:
    """Look at workers, at ordinary tasks, and at what is left over."""
    for fact in story.of("died"):
        if story.on_redis and KOMBUS_OWN in (fact["error"] or ""):
            report.allowed["workers that kombu ended when it lost Redis"] += 1
        else:
            report.workers_died += 1
            how = "did not end" if fact["code"] is None else f"ended with {fact['code']}"
            report.offences.append(f"workers: {fact['node']} {how}: {fact['error']}")
    for fact in story.of("failed"):
        report.tasks_failed += 1
        report.offences.append(f"tasks: {fact['task']}[{fact['id']}] failed: {fact['error']}")
    report.offences += [f"tasks: {what}" for what in lost(story, report, TASK, story.sent(TASK))]
    gone, may_be = report.allowed[LOST_ON_THE_WAY], story.redis_may_lose
    if gone > may_be:
        report.offences.append(f"workers: {gone} messages are gone, of which Redis lost {may_be} at most")
    for fact in story.of("queue"):
        if fact["messages"] > LEFT_OVER:
            report.offences.append(f"workers: {fact['messages']} messages are left in the queue {fact['name']}")
    report.offences += [f"recovery: {fact['why']}" for fact in story.of("stuck")]
    if not story.of("recovered"):
        report.offences.append("recovery: it did not come to that")
