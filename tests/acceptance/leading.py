"""An app of leader-only tasks; facts go where `proj` puts them."""

from __future__ import annotations

import os
import time
from typing import Any

import psycopg
from celery import Celery

from celery_pgleader import LeadershipLost, current_leadership
from tests.acceptance.proj import on_gained, on_lost, tell
from tests.support.rabbitmq import QUORUM

__all__ = ["app", "on_gained", "on_lost"]

app = Celery("proj", broker=os.environ["PROJ_BROKER"])
app.conf.update(
    beat_schedule_filename=os.environ["PROJ_SCHEDULE"],
    worker_direct=True,
    worker_prefetch_multiplier=int(os.environ.get("LEADING_PREFETCH", "1")),
    broker_connection_retry_on_startup=True,
    result_backend=os.environ.get("LEADING_RESULTS"),
)
if os.environ.get("LEADING_QUORUM"):
    app.conf.update(QUORUM)


def work(task: Any, key: str, seconds: float) -> None:
    """Take a while."""
    leadership = current_leadership()
    assert leadership is not None
    facts = {"key": key, "node": task.request.hostname, "term": leadership.term, "pid": os.getpid()}
    tell("began", **facts)
    time.sleep(seconds)
    tell("ended", **facts, trusted=leadership.trusted())


@app.task(bind=True, name="leading.finish", leader_only=True)
def finish(self: Any, key: str, seconds: float = 0.0) -> None:
    """Come to an end, whoever leads by then."""
    work(self, key, seconds)


@app.task(bind=True, name="leading.abort", leader_only=True, on_leadership_lost="abort")
def abort(self: Any, key: str, seconds: float = 0.0) -> None:
    """Be ended when the lead is lost."""
    work(self, key, seconds)


@app.task(bind=True, name="leading.again", leader_only=True, max_retries=1)
def again(self: Any, key: str) -> None:
    """Ask for a retry the first time."""
    work(self, f"{key} {self.request.retries}", 0.0)
    if not self.request.retries:
        raise self.retry(countdown=1)


@app.task(bind=True, name="leading.write", leader_only=True)
def write(self: Any, key: str, seconds: float) -> None:
    """Write, unless somebody else leads by then."""
    leadership = current_leadership()
    assert leadership is not None
    tell("began", key=key, node=self.request.hostname, term=leadership.term)
    time.sleep(seconds)
    try:
        leadership.ensure()
    except LeadershipLost as error:
        tell("stopped", key=key, reason=str(error))
    try:
        with psycopg.connect(os.environ["PGLEADER_DATABASE_URL"]) as db:
            db.execute("create table if not exists written (key text, term bigint)")
            db.execute("insert into written values (%s, %s)", [key, leadership.term])
            db.execute("select pgleader.fence(%s, %s)", [leadership.election, leadership.term])
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        tell("fenced", key=key, reason=str(error))
    else:
        tell("written", key=key, term=leadership.term)
