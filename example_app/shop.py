"""A small shop: the Celery app that the demo runs. Start reading here.

    celery -A example_app.shop worker --pgleader

Nothing in this file is about elections but the settings `pgleader_*`, `current_slot()` and `leader_only=True`.
"""

from __future__ import annotations

import os
from typing import Any

import psycopg
from celery import Celery

from celery_pgleader import current_slot
from example_app.recording import record

DATABASE_URL = os.environ.get("SHOP_DATABASE_URL", "postgresql://postgres@localhost/shop")
BROKER_URL = os.environ.get("SHOP_BROKER_URL", "redis://localhost:6379/0")
REPORT_EVERY = 2.0

app = Celery("shop", broker=BROKER_URL)
app.conf.update(
    pgleader_database_url=DATABASE_URL,
    # The leader sends this task for each notification on the channel "orders". With `deduplicate`, here and below, a
    # message that is delivered again is not run again.
    pgleader_channels={"orders": {"task": "example_app.shop.on_order", "deduplicate": True}},
    # Only the leader's beat sends this.
    beat_schedule={"report": {"task": "example_app.shop.report", "schedule": REPORT_EVERY}},
    pgleader_schedule={"report": {"deduplicate": True}},
    # A worker that is killed must not take messages with it: they are acknowledged when the task has ended, and no
    # worker takes more of them than it has hands.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
)
if BROKER_URL.startswith("redis"):
    # RabbitMQ sees at once that a consumer has died. Redis does not: what a killed worker had taken comes back after
    # the visibility timeout, an hour by default. All tasks here take milliseconds, so five seconds will do.
    app.conf.broker_transport_options = {
        "visibility_timeout": 5,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }


@app.task(bind=True)
def on_order(self: Any, order: dict[str, Any]) -> None:
    """Confirm an order. Sent by the leader for each notification on the channel "orders"."""
    with psycopg.connect(DATABASE_URL) as db:
        db.execute("update orders set confirmed_at = clock_timestamp() where id = %s", [order["id"]])
        record(db, "order", order["id"], self.request)


@app.task(bind=True)
def report(self: Any) -> str:
    """Sum up the day. Called by the leader's beat, and run by any worker."""
    slot = current_slot()
    with psycopg.connect(DATABASE_URL) as db:
        record(db, "tick", slot.at.timestamp() if slot else "by hand", self.request)
        row = db.execute("select count(*), coalesce(sum(price), 0) from orders").fetchone()
    return "{} orders, {} in all".format(*row or (0, 0))


@app.task(bind=True, leader_only=True)
def restock(self: Any, delivery: int) -> None:
    """Order goods from the supplier. Runs on the leader only: two at a time would order twice."""
    with psycopg.connect(DATABASE_URL) as db:
        record(db, "restock", delivery, self.request)
