"""The app whose schedule is run, by whichever scheduler: it tells of each message that the broker has taken.

`BENCH_CONF` is a JSON object of Celery's settings; `BENCH_SCHEDULE` says which entries there are.
"""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from typing import Any

from celery import Celery, bootsteps
from celery.signals import after_task_publish, beat_init, worker_ready
from telling import tell

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    # No entry of Celery's own.
    result_expires=None,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    **json.loads(os.environ.get("BENCH_CONF", "{}")),
)


def entries() -> dict[str, dict[str, Any]]:
    """Return entries of one period; if it is said when the schedule begins, each is due at a time of its own."""
    wanted = json.loads(os.environ["BENCH_SCHEDULE"])
    made: dict[str, dict[str, Any]] = {}
    for number in range(wanted["entries"]):
        options = {"headers": {"bench_entry": number}, "queue": "ticks"}
        made[f"entry-{number}"] = {"task": "bench.tick", "schedule": wanted["period"], "options": options}
        if "began" in wanted:
            last = wanted["began"] + wanted["step"] * number - wanted["period"]
            made[f"entry-{number}"]["last_run_at"] = datetime.fromtimestamp(last, timezone.utc)
    return made


if "BENCH_SCHEDULE" in os.environ:
    app.conf.beat_schedule = entries()


@app.task(name="bench.tick")
def tick() -> None:
    """Do nothing."""


@after_task_publish.connect
def tell_of_tick(sender: str, headers: dict[str, Any], **_: Any) -> None:
    """Say that a message was sent, and for which slot if it says so."""
    if sender == "bench.tick":
        slot = headers.get("pgleader_slot") or {}
        tell("tick", entry=headers["bench_entry"], slot=slot.get("at"))


@beat_init.connect
def tell_of_beat(**_: Any) -> None:
    """Say that the process is there; whether it leads is another matter."""
    tell("ready")


@worker_ready.connect
def tell_of_worker(**_: Any) -> None:
    """Say that the worker consumes."""
    tell("ready")


class Telling(bootsteps.Step):
    """Has a worker tell when it begins to lead: at once, before all that the leader then begins to do."""

    requires = ("celery_pgleader.worker.bootsteps:ElectionStep",)

    def create(self, parent: Any) -> None:
        """Be the first who is told."""
        parent.pgleader.leadership.subscribe(lambda change: change.gained and tell("leads"))


if "pgleader_database_url" in app.conf:
    app.steps["worker"].add(Telling)
