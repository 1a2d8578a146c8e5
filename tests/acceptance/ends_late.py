"""The app of leader-only tasks, shut down just as one of them gets to a process of the pool.

How far that one gets by then is in `ENDS_LATE`, and its id is `LATE`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import bootsteps

from tests.acceptance.proj import app
from tests.support.eventually import eventually

LATE = "late"
FACTS = Path(os.environ["PROJ_FACTS"])


class ShutDownInBetween(bootsteps.StartStopStep):
    """Has the first worker that is to hand the task to a process get TERM at that moment, as it may at any."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def register_with_event_loop(self, consumer: Any, hub: Any) -> None:
        """Come between the loop and the step of it in which messages are written to processes."""
        write, pool = hub.consolidate_callback, consumer.pool

        def write_or_end(fds: Any) -> None:
            if any(job.correlation_id == LATE for job in pool._pool.outbound_buffer) and _is_first():  # noqa: SLF001
                _end_while(os.environ["ENDS_LATE"], lambda: write(fds), pool.info["processes"])
            else:
                write(fds)

        hub.consolidate_callback = write_or_end


def _end_while(stage: str, write: Callable[[], object], processes: list[int]) -> None:
    if stage == "it has begun":
        write()
        eventually(lambda: '"began"' in FACTS.read_text())
    elif stage == "it was given to a process":
        # None begins it before the worker has shut down.
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        write()
    # The loop looks for that next.
    signal.raise_signal(signal.SIGTERM)
    for pid in processes:
        os.kill(pid, signal.SIGCONT)


def _is_first() -> bool:
    try:
        FACTS.with_name("was first").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


if "ENDS_LATE" in os.environ:
    app.steps["consumer"].add(ShutDownInBetween)
