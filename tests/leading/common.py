"""What the app, the senders and the driver have in common."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from celery import Celery

from tests.support.rabbitmq import QUORUM

ELECTION = "leading"
LEADER_QUEUE = f"leader-{ELECTION}"
RESIGN = signal.SIGRTMIN


def make_app(broker: str) -> Any:
    """Return the app, without its tasks."""
    app = Celery(ELECTION, broker=broker)
    app.conf.update(
        # Of its own, on a broker that others use as well.
        task_default_queue=ELECTION,
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    if broker.startswith("amqp"):
        # Without it, what is sent while the broker stops is lost unseen.
        app.conf.broker_transport_options = {"confirm_publish": True}
    if os.environ.get("LEADING_QUEUES") == "quorum":
        app.conf.update({**QUORUM, "task_default_queue": ELECTION})
    return app


def tell(what: str, **fact: Any) -> None:
    """Append a fact; lines this short are written whole."""
    line = json.dumps({"what": what, "at": time.monotonic(), **fact}) + "\n"
    fd = os.open(os.environ["LEADING_FACTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)
