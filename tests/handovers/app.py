"""The app whose schedule is handed over; the environment says which scheduler, and where everything is."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.schedules import crontab

SCHEDULERS = {
    "persistent": "celery.beat:PersistentScheduler",
    "django": "django_celery_beat.schedulers:DatabaseScheduler",
    "sqlalchemy": "sqlalchemy_celery_beat.schedulers:DatabaseScheduler",
    "redbeat": "redbeat.RedBeatScheduler",
    "django-two-databases": "django_celery_beat.schedulers:DatabaseScheduler",
}
ELECTION = "handovers"
LONG = 7.0


def make_app(environment: dict[str, str] | None = None) -> Any:
    """Return the app."""
    env = environment or dict(os.environ)
    app = Celery("handovers", broker=env["HANDOVERS_BROKER"])
    app.conf.update(
        beat_schedule={
            "second": {"task": "handovers.tick", "schedule": 1.0},
            "minute": {"task": "handovers.tick", "schedule": crontab()},
            "long": {"task": "handovers.tick", "schedule": LONG},
        },
        beat_scheduler=SCHEDULERS[env["HANDOVERS_SCHEDULER"]],
        broker_connection_retry_on_startup=True,
        # No entry of Celery's own.
        result_expires=None,
        # sqlalchemy-celery-beat
        beat_dburi=env["HANDOVERS_DATABASE"].replace("postgresql://", "postgresql+psycopg://"),
        # RedBeat
        redbeat_redis_url=env["HANDOVERS_BROKER"],
        redbeat_key_prefix="handovers:",
        pgleader_election=ELECTION,
        pgleader_ttl=1.0,
        pgleader_poll_interval=0.2,
    )
    if env["HANDOVERS_SCHEDULER"] == "django-two-databases":
        app.conf.pgleader_django_database = "ledger"
    else:
        app.conf.pgleader_database_url = env["HANDOVERS_DATABASE"]
    return app
