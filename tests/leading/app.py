"""The app whose leader-only tasks are counted; the environment says where everything is."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from typing import Any

from celery.signals import task_received, worker_ready

from celery_pgleader import current_leadership, leadership_gained, leadership_lost
from tests.leading.common import ELECTION, RESIGN, make_app, tell
from tests.support.stacks import dump_on_signal

dump_on_signal()

STAND_BACK = 0.5

app = make_app(os.environ.get("LEADING_BROKER", "memory://"))
app.conf.update(
    worker_prefetch_multiplier=2,
    beat_schedule_filename=os.environ.get("LEADING_SCHEDULE", "schedule"),
    result_expires=None,
    pgleader_database_url=os.environ.get("LEADING_DATABASE", ""),
    pgleader_election=ELECTION,
    pgleader_ttl=2.0,
)


@leadership_gained.connect
def on_gained(sender: str, term: Any, **_: Any) -> None:
    """Tell who leads."""
    tell("gained", node=sender, term=term.number)


@leadership_lost.connect
def on_lost(sender: str, term: Any, reason: str, **_: Any) -> None:
    """Tell who leads no more."""
    tell("lost", node=sender, term=term.number, reason=reason)


@task_received.connect
def on_received(request: Any, **_: Any) -> None:
    """Tell of each delivery to a leader."""
    tell("received", key=request.args[0])


@worker_ready.connect
def on_ready(sender: Any, **_: Any) -> None:
    """Have the worker resign at a signal, which stands in for trouble with its beat."""
    participant = sender.controller.pgleader
    signal.signal(RESIGN, lambda *_: participant._elector.resign(STAND_BACK))  # noqa: SLF001 - nobody else need do it


@app.task(bind=True, name="leading.work", leader_only=True)
def work(self: Any, key: int, seconds: float = 0.0) -> None:
    """Take a while, and tell of the beginning and the end."""
    leadership = current_leadership()
    assert leadership is not None
    run = uuid.uuid4().hex
    node = self.request.hostname
    tell("began", key=key, run=run, node=node, term=leadership.term, trusted=leadership.trusted(), pid=os.getpid())
    if seconds:
        threading.Event().wait(seconds)
    tell("ended", key=key, run=run, trusted=leadership.trusted())
