"""The app whose schedule is measured: entries as the environment says, each message stamped when it is sent."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import Celery
from celery.schedules import crontab
from celery.signals import before_task_publish

app = Celery("beat_app", broker=os.environ["BENCH_BROKER"])
options = json.loads(os.environ["BENCH_SCHEDULE"])
began = datetime.fromtimestamp(options["began"], timezone.utc)

if options["kind"] == "burst":
    # All due at the full minute.
    entries: dict[str, dict[str, Any]] = {
        f"entry {number}": {"task": "bench", "schedule": crontab()} for number in range(options["entries"])
    }
else:
    # Each due at its own fraction of the period.
    period = options["period"]
    entries = {
        f"entry {number}": {
            "task": "bench",
            "schedule": period,
            # In the past, so that all are in step by then.
            "last_run_at": began - timedelta(seconds=period * (2 - number / options["entries"])),
        }
        for number in range(options["entries"])
    }

for number, entry in enumerate(entries.values()):
    entry["options"] = {"headers": {"bench_entry": number}}

app.conf.update(
    beat_schedule=entries,
    result_expires=None,
    pgleader_database_url=os.environ["BENCH_DATABASE"],
    pgleader_election="bench",
)


@before_task_publish.connect
def stamp(headers: dict[str, Any], **_: Any) -> None:
    """Say when it was sent."""
    headers["bench_sent_at"] = time.time()
