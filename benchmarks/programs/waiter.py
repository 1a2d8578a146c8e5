"""The floor: a bare session that waits in `pg_advisory_lock`, for as long as it takes. TERM has it let go and end."""

from __future__ import annotations

import os
import signal
import sys

import psycopg
from telling import tell

with psycopg.connect(os.environ["BENCH_DATABASE"], autocommit=True) as session:
    # Ended by TERM at any time; while it waits, there is nothing to let go of.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    tell("ready")
    session.execute("select pg_advisory_lock(4242)")
    tell("leads")
    try:
        while True:
            signal.pause()
    finally:
        session.execute("select pg_advisory_unlock(4242)")
