"""What @platformatic/leader does: one session, and `pg_try_advisory_lock` at every poll, by the leader as well.

It differs in what would keep the seed from being measured at all: it comes back when its session is ended, and when it
is told to end it frees the lock, by ending its session.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import psycopg
from telling import tell

PAUSE = 1.0


def poll(database: str, seconds: float) -> None:
    """Ask, and ask again, until the session is ended."""
    with psycopg.connect(database, autocommit=True) as session:
        tell("ready")
        leads = False
        while True:
            (granted,) = session.execute("select pg_try_advisory_lock(4242)").fetchone() or (False,)
            if granted and not leads:
                tell("leads")
            leads = granted
            time.sleep(seconds)  # noqa: TID251 - as the seed does


signal.signal(signal.SIGTERM, lambda *_: sys.exit())
while True:
    try:
        poll(os.environ["BENCH_DATABASE"], float(os.environ["BENCH_POLL"]))
    except psycopg.OperationalError:
        # As long as the seed waits.
        time.sleep(PAUSE)  # noqa: TID251 - as the seed does
