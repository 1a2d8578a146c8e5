"""The floor in a Celery worker: a thread that waits in `pg_advisory_lock`, and lets go when the worker shuts down."""

from __future__ import annotations

import os
import threading
from typing import Any

import psycopg
from celery import Celery
from celery.signals import worker_ready, worker_shutting_down
from telling import tell

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.broker_connection_retry_on_startup = True
ending = threading.Event()


def lead() -> None:
    """Wait for the lock, and hold it until the worker ends."""
    with psycopg.connect(os.environ["BENCH_DATABASE"], autocommit=True) as session:
        tell("ready")
        session.execute("select pg_advisory_lock(4242)")
        tell("leads")
        ending.wait()
        session.execute("select pg_advisory_unlock(4242)")


@worker_ready.connect
def begin(**_: Any) -> None:
    """Begin to wait."""
    threading.Thread(target=lead, daemon=True).start()


@worker_shutting_down.connect
def end(**_: Any) -> None:
    """Let go."""
    ending.set()
