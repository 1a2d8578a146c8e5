"""Writes the entries of `BENCH_SCHEDULE` into Redis for RedBeat, all at once.

Through `save`, an entry that was last run at another time than now would be due at a wrong time at first.
"""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone

from beat_app import app
from celery.schedules import schedule
from redbeat.decoder import RedBeatJSONEncoder  # type: ignore[import-untyped]
from redbeat.schedulers import (  # type: ignore[import-untyped]
    RedBeatSchedulerEntry,
    ensure_conf,
    get_redis,
)

ensure_conf(app)
wanted = json.loads(os.environ["BENCH_SCHEDULE"])
with get_redis(app).pipeline() as pipe:
    for number in range(wanted["entries"]):
        key = RedBeatSchedulerEntry.generate_key(app, f"entry-{number}")
        definition = {
            "name": f"entry-{number}",
            "task": "bench.tick",
            "args": None,
            "kwargs": None,
            "options": {"headers": {"bench_entry": number}, "queue": "ticks"},
            "schedule": schedule(wanted["period"]),
            "enabled": True,
        }
        # RedBeat writes due times down to the second.
        due = wanted["began"] + wanted["step"] * number
        meta = {"last_run_at": datetime.fromtimestamp(due - wanted["period"], timezone.utc), "total_run_count": 0}
        pipe.hset(key, "definition", json.dumps(definition, cls=RedBeatJSONEncoder))
        pipe.hset(key, "meta", json.dumps(meta, cls=RedBeatJSONEncoder))
        pipe.zadd(app.redbeat_conf.schedule_key, {key: int(due)})
    pipe.execute()
