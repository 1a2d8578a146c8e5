"""A fleet of so many nodes in one process, each with sessions of its own: `fleet.py candidates|pollers NUMBER`."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

import psycopg
from celery import Celery
from telling import tell

DATABASE = os.environ["BENCH_DATABASE"]


def stand_as_candidates(number: int) -> None:
    """Have so many workers' parts in an election: an app without a schedule has them do nothing else."""
    from celery_pgleader.config import Config  # noqa: PLC0415 - pollers do without
    from celery_pgleader.worker.candidate import Candidate  # noqa: PLC0415

    app = Celery("bench", broker="memory://")
    app.conf.result_expires = None
    config = Config(database_url=DATABASE, election="bench")
    for node in range(number):
        schedule = str(Path(os.environ["BENCH_FOLDER"], f"schedule-{node}"))
        Candidate(app, f"n{node}", config, "celery.beat:PersistentScheduler", schedule).start()


def poll(seconds: float) -> None:
    """Do as the seed does, from a time of its own."""
    with psycopg.connect(DATABASE, autocommit=True) as session:
        time.sleep(random.uniform(0, seconds))  # noqa: TID251 - as the seed does
        while True:
            session.execute("select pg_try_advisory_lock(4242)")
            time.sleep(seconds)  # noqa: TID251 - as the seed does


def main(kind: str, number: int) -> None:
    """Stand."""
    if kind == "candidates":
        stand_as_candidates(number)
    else:
        for _ in range(number):
            threading.Thread(target=poll, args=[float(os.environ["BENCH_POLL"])], daemon=True).start()
    tell("ready")
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
