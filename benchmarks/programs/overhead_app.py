"""The app whose ordinary tasks are counted: one that does nothing, and beside it all that gives a leader work."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import worker_ready
from telling import tell

app = Celery("overhead_app", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    # A tick a second, to a queue of its own.
    beat_schedule={"tick": {"task": "tick", "schedule": 1.0, "options": {"queue": "ticks"}}},
    beat_schedule_filename=os.environ["BENCH_SCHEDULE"],
    result_expires=None,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    pgleader_database_url=os.environ["BENCH_DATABASE"],
    pgleader_election=os.environ["BENCH_ELECTION"],
)


@app.task(name="nothing")
def nothing() -> None:
    """Do nothing."""


@app.task(name="lead", leader_only=True)
def lead() -> None:
    """Have the leader consume the leader queue."""


@worker_ready.connect
def tell_of_worker(**_: Any) -> None:
    """Say that the worker consumes."""
    tell("ready")
