"""A `LeaderElector` without any Celery. TERM has it leave the election and end."""

from __future__ import annotations

import os
import signal
import threading

from telling import tell

from celery_pgleader import Change, LeaderElector


def on_change(change: Change) -> None:
    """Tell that this node leads."""
    if change.gained:
        tell("leads")


end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
with LeaderElector(os.environ["BENCH_DATABASE"], node=os.environ["BENCH_NODE"]) as elector:
    elector.leadership.subscribe(on_change)
    tell("ready")
    end.wait()
