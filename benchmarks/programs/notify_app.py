"""The app whose task is run for each notification: it tells so."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery
from celery.signals import worker_ready
from telling import tell

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    **json.loads(os.environ.get("BENCH_CONF", "{}")),
)


@app.task(name="bench.on_order")
def on_order(order: dict[str, Any]) -> None:
    """Tell that it runs."""
    tell("ran", number=order["number"])


@worker_ready.connect
def tell_of_worker(**_: Any) -> None:
    """Say that the worker consumes."""
    tell("ready")
