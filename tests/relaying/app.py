"""The app that sends and takes the notifications; the environment says where everything is.

What reaches a worker and what it runs is appended, a JSON object a line, to the file `RELAYING_FACTS`.
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery
from celery.signals import task_received

ELECTION = "relaying"
DURABLE, RAW = "relayed", "heard"
# What the payloads of both hold.
FIELDS = ("client", "key", "number")

app = Celery("relaying", broker=os.environ["RELAYING_BROKER"])
app.conf.update(
    result_expires=None,
    # Of its own, on a broker that others use as well.
    task_default_queue="relaying",
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    pgleader_database_url=os.environ["RELAYING_DATABASE"],
    pgleader_election=ELECTION,
    pgleader_ttl=1.0,
    pgleader_poll_interval=0.2,
    pgleader_channels={DURABLE: {"task": "relaying.take", "deduplicate": True}, RAW: "relaying.hear"},
)


def tell(what: str, **fact: Any) -> None:
    """Append a fact; lines this short are written whole."""
    fd = os.open(os.environ["RELAYING_FACTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, (json.dumps({"what": what, **fact}) + "\n").encode())
    finally:
        os.close(fd)


@task_received.connect
def on_received(request: Any, **_: Any) -> None:
    """Tell of each delivery, also of those that are not run."""
    if request.name == "relaying.take":
        tell("delivered", id=request.id, **request.args[0])


@app.task(bind=True, name="relaying.take")
def take(self: Any, payload: dict[str, Any]) -> None:
    """Take a durable notification."""
    tell("run", id=self.request.id, notification=self.request.get("pgleader_notification")["id"], **payload)


@app.task(name="relaying.hear")
def hear(payload: dict[str, Any]) -> None:
    """Take a raw notification."""
    tell("heard", **payload)
