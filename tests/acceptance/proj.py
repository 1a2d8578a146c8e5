"""The Celery app of the acceptance tests; what really happens is appended, a JSON object a line, to a file.

`PROJ_SETTINGS` is a JSON object: the settings of Celery that a test wants, with `crontab` in place of a schedule for
each minute. A file named `before` or `after` in the folder `PROJ_CRASHES` has the next process that publishes a slot
kill itself just before or just after it has; the file is gone then.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from celery import Celery
from celery.schedules import crontab
from celery.signals import after_task_publish, before_task_publish

from celery_pgleader import (
    LeadershipLost,
    current_leadership,
    current_slot,
    leadership_gained,
    leadership_lost,
    on_notification,
)
from tests.support.stacks import dump_on_signal

dump_on_signal()

app = Celery("proj", broker=os.environ["PROJ_BROKER"])
app.conf.update(
    {
        "beat_schedule": {"tick": {"task": "proj.tick", "schedule": 1.0}},
        "beat_schedule_filename": os.environ["PROJ_SCHEDULE"],
        "worker_direct": True,
        "worker_prefetch_multiplier": 1,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {"socket_keepalive": True},
        **json.loads(os.environ.get("PROJ_SETTINGS", "{}")),
    }
)
for scheduled in app.conf.beat_schedule.values():
    if scheduled["schedule"] == "crontab":
        scheduled["schedule"] = crontab()


def tell(what: str, **fact: Any) -> None:
    """Append a fact; lines this short are written whole."""
    line = json.dumps({"what": what, "at": time.monotonic(), "pid": os.getpid(), **fact}) + "\n"
    fd = os.open(os.environ["PROJ_FACTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def linger(until: float | str) -> None:
    """Take some seconds, or stay until the test has opened the gate of that name."""
    if isinstance(until, float | int):
        time.sleep(until)
        return
    while not Path(os.environ["PROJ_FACTS"]).with_name(f"gate {until}").exists():
        time.sleep(0.02)


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
def slow(self: Any, until: float | str) -> None:
    """Take a while."""
    tell("slow began", node=self.request.hostname)
    linger(until)
    tell("slow ended", node=self.request.hostname)


@app.task(bind=True, name="proj.run")
def run(self: Any, until: float | str = 0.0) -> None:
    """Run for a slot."""
    slot = current_slot()
    assert slot is not None
    facts = {"entry": slot.entry, "slot": slot.at.isoformat(), "id": self.request.id, "node": self.request.hostname}
    tell("began", **facts, catch_up=slot.catch_up, term=slot.term)
    linger(until)
    tell("ended", **facts)


@app.task(bind=True, name="proj.fail_once")
def fail_once(self: Any) -> None:
    """Ask for a retry the first time."""
    slot = current_slot()
    assert slot is not None
    tell("tried", slot=slot.at.isoformat(), id=self.request.id, retries=self.request.retries)
    if not self.request.retries:
        raise self.retry(countdown=0)


def work(task: Any, key: str, until: float | str) -> None:
    """Take a while, on the leader."""
    leadership = current_leadership()
    assert leadership is not None
    facts = {"key": key, "node": task.request.hostname, "term": leadership.term}
    tell("began", **facts)
    linger(until)
    tell("ended", **facts, trusted=leadership.trusted())


@app.task(bind=True, name="proj.lead", leader_only=True)
def lead(self: Any, key: str, until: float | str = 0.0) -> None:
    """Run on the leader only, to its end even if another leads by then."""
    work(self, key, until)


@app.task(bind=True, name="proj.abort", leader_only=True, on_leadership_lost="abort")
def abort(self: Any, key: str, until: float | str = 0.0) -> None:
    """Be ended when the lead is lost."""
    work(self, key, until)


@app.task(bind=True, name="proj.again", leader_only=True, max_retries=1)
def again(self: Any, key: str) -> None:
    """Ask for a retry the first time."""
    work(self, f"{key} {self.request.retries}", 0.0)
    if not self.request.retries:
        raise self.retry(countdown=1)


@app.task(bind=True, name="proj.write", leader_only=True)
def write(self: Any, key: str, until: float | str = 0.0) -> None:
    """Write, unless somebody else leads by then."""
    leadership = current_leadership()
    assert leadership is not None
    tell("began", key=key, node=self.request.hostname, term=leadership.term)
    linger(until)
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


@on_notification("orders")
@app.task(bind=True, name="proj.on_order")
def on_order(self: Any, order: Any) -> None:
    """Handle a notification."""
    request = self.request
    tell("order", order=order, channel=request.get("pgleader_channel"), term=request.get("pgleader_term"))


def crash_if_asked(when: str) -> None:
    """Kill this process, if that is wanted now."""
    folder = os.environ.get("PROJ_CRASHES")
    if folder:
        with suppress(FileNotFoundError):
            (Path(folder) / when).unlink()
            tell(f"crashed {when}")
            os.kill(os.getpid(), signal.SIGKILL)


@before_task_publish.connect
def on_publish(headers: dict[str, Any], **_: Any) -> None:
    """Tell of each slot that is about to be published."""
    if "pgleader_slot" in headers:
        slot = headers["pgleader_slot"]
        tell("publishing", entry=slot["entry"], slot=slot["at"], id=headers["id"], slot_term=slot["term"])
        crash_if_asked("before")


@after_task_publish.connect
def on_published(headers: dict[str, Any], **_: Any) -> None:
    """Go on, or not."""
    if "pgleader_slot" in headers:
        crash_if_asked("after")
