"""Writes the entries of `BENCH_SCHEDULE` into a database for django-celery-beat, all at once."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone

import django
from django.core.management import call_command

django.setup()
from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks  # type: ignore[import-untyped]  # noqa: E402 - needs the set-up

call_command("migrate", verbosity=0)
wanted = json.loads(os.environ["BENCH_SCHEDULE"])
interval = IntervalSchedule.objects.create(every=wanted["period"], period=IntervalSchedule.SECONDS)
first = wanted["began"] - wanted["period"]
PeriodicTask.objects.bulk_create(
    PeriodicTask(
        name=f"entry-{number}",
        task="bench.tick",
        interval=interval,
        queue="ticks",
        headers=json.dumps({"bench_entry": number}),
        last_run_at=datetime.fromtimestamp(first + wanted["step"] * number, timezone.utc),
    )
    for number in range(wanted["entries"])
)
PeriodicTasks.update_changed()
