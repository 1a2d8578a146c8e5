"""An app whose schedule, policies and crashes are told by the environment; facts go where `proj` puts them.

`TIMETABLE` is a JSON object: the settings of Celery that a test wants, with `crontab` in place of a schedule for each
minute. A file named `before` or `after` in the folder `TIMETABLE_CRASHES` has the next process that publishes a slot
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

from celery import Celery
from celery.schedules import crontab
from celery.signals import after_task_publish, before_task_publish

from celery_pgleader import current_slot
from tests.acceptance.proj import on_gained, on_lost, tell

__all__ = ["app", "on_gained", "on_lost"]

app = Celery("proj", broker=os.environ["PROJ_BROKER"])
app.conf.update(
    beat_schedule_filename=os.environ["PROJ_SCHEDULE"],
    result_expires=None,
    worker_direct=True,
    worker_prefetch_multiplier=1,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_connection_retry_on_startup=True,
    **json.loads(os.environ["TIMETABLE"]),
)
for entry in app.conf.beat_schedule.values():
    if entry["schedule"] == "crontab":
        entry["schedule"] = crontab()


@app.task(bind=True, name="timetable.run")
def run(self: Any, seconds: float = 0.0) -> None:
    """Run for a slot."""
    slot = current_slot()
    assert slot is not None
    facts = {"entry": slot.entry, "slot": slot.at.isoformat(), "id": self.request.id, "node": self.request.hostname}
    tell("began", **facts, catch_up=slot.catch_up, term=slot.term)
    time.sleep(seconds)
    tell("ended", **facts)


@app.task(bind=True, name="timetable.fail_once")
def fail_once(self: Any) -> None:
    """Ask for a retry the first time."""
    slot = current_slot()
    assert slot is not None
    tell("tried", slot=slot.at.isoformat(), id=self.request.id, retries=self.request.retries)
    if not self.request.retries:
        raise self.retry(countdown=0)


def crash_if_asked(when: str) -> None:
    """Kill this process, if that is wanted now."""
    folder = os.environ.get("TIMETABLE_CRASHES")
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
