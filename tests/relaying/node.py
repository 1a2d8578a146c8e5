"""One node that stands for the election and relays, but runs no task: `python -m tests.relaying.node NAME FILE`."""

from __future__ import annotations

import logging
import signal
import sys
import threading

from celery_pgleader.config import Config
from celery_pgleader.worker.candidate import Candidate
from tests.relaying.app import app


def main(name: str, schedule_file: str) -> None:
    """Stand until told to end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    app.set_current()
    candidate = Candidate(app, name, Config.from_app(app), "celery.beat:PersistentScheduler", schedule_file)
    end = threading.Event()

    def leave(*_: object) -> None:
        candidate.elector.leave()
        end.set()

    signal.signal(signal.SIGTERM, leave)
    candidate.start()
    while not end.wait(1):
        pass
    candidate.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
