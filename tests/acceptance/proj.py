"""The Celery app of the acceptance tests; what really happens is appended, a JSON object a line, to a file."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery

from celery_pgleader import leadership_gained, leadership_lost, on_notification
from tests.support.stacks import dump_on_signal

dump_on_signal()

app = Celery("proj", broker=os.environ["PROJ_BROKER"])
app.conf.update(
    beat_schedule={"tick": {"task": "proj.tick", "schedule": 1.0}},
    beat_schedule_filename=os.environ["PROJ_SCHEDULE"],
    worker_direct=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"socket_keepalive": True},
)


def tell(what: str, **fact: Any) -> None:
    """Append a fact; lines this short are written whole."""
    line = json.dumps({"what": what, "at": time.monotonic(), "pid": os.getpid(), **fact}) + "\n"
    fd = os.open(os.environ["PROJ_FACTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


@leadership_gained.connect
def on_gained(sender: str, term: Any, **_: Any) -> None:
    """Tell who leads."""
    tell("gained", node=sender, term=term.number)


@leadership_lost.connect
def on_lost(sender: str, term: Any, reason: str, **_: Any) -> None:
    """Tell who leads no more."""
    tell("lost", node=sender, term=term.number, reason=reason)


@app.task(bind=True, name="proj.tick")
def tick(self: Any) -> None:
    """Run by the schedule."""
    tell("tick", node=self.request.hostname, sent_by=self.request.origin)


@app.task(bind=True, name="proj.slow")
def slow(self: Any, seconds: float) -> None:
    """Take a while."""
    tell("slow began", node=self.request.hostname)
    time.sleep(seconds)
    tell("slow ended", node=self.request.hostname)


@app.task(bind=True, name="proj.lead", leader_only=True)
def lead(self: Any, key: str) -> None:
    """Run on the leader only."""
    tell("lead", node=self.request.hostname, key=key)


@app.task(bind=True, name="proj.slow_lead", leader_only=True)
def slow_lead(self: Any, seconds: float) -> None:
    """Take a while, on the leader only."""
    tell("slow_lead began", node=self.request.hostname)
    time.sleep(seconds)
    tell("slow_lead ended", node=self.request.hostname)


@on_notification("orders")
@app.task(bind=True, name="proj.on_order")
def on_order(self: Any, order: Any) -> None:
    """Handle a notification."""
    request = self.request
    tell("order", order=order, channel=request.get("pgleader_channel"), term=request.get("pgleader_term"))
