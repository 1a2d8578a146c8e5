"""What of the schedule a node can run, as its app has it when it starts."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from typing import Any

from celery.beat import PersistentScheduler, Scheduler
from celery.schedules import maybe_schedule

from celery_pgleader.beat.leader_beat import scheduler_class
from celery_pgleader.beat.slot_keeper import describe
from celery_pgleader.store.presence import Abilities


def abilities_of(app: Any, scheduler: Any, consumed: Container[str]) -> Abilities:
    """Return what a node can run.

    Args:
        app: the Celery app.
        scheduler: `beat_scheduler`: a class, its dotted name, or an alias that a package has registered.
        consumed: names of the queues that the node consumes.

    """
    entries = {name: _parts(entry) for name, entry in app.conf.beat_schedule.items()}
    lacking = [
        f"{task} of {name}"
        for name, (task, _, options) in entries.items()
        if task not in app.tasks and _queue(app, task, options) in consumed
    ]
    unfit = f"its app has no task {', '.join(sorted(lacking))}" if lacking else None
    found = scheduler_class(scheduler)
    if found is not Scheduler and not issubclass(found, PersistentScheduler):
        return Abilities(unfit=unfit)
    words = [f"{name}\n{task}\n{describe(maybe_schedule(schedule))}" for name, (task, schedule, _) in entries.items()]
    digest = hashlib.blake2s("\n\n".join(sorted(words)).encode(), digest_size=4).hexdigest()
    return Abilities(tuple(sorted(entries)), digest, unfit)


def _parts(entry: Any) -> tuple[str, Any, dict[str, Any]]:
    given = entry if isinstance(entry, dict) else vars(entry)
    return given["task"], given.get("schedule"), given.get("options") or {}


def _queue(app: Any, task: str, options: dict[str, Any]) -> str:
    """Return the name of the queue that a task goes to; nothing if it goes by an exchange of its own."""
    try:
        queue = app.amqp.router.route(dict(options), task).get("queue")
    except Exception:  # noqa: BLE001 - a router of somebody's own may want more than a name
        return ""
    return str(getattr(queue, "name", queue or ""))
