"""One node: `python -m tests.handovers.node NAME SCHEDULE_FILE`. TERM ends it, USR1 has it resign."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from celery_pgleader.config import Config
from celery_pgleader.worker.candidate import Candidate
from tests.handovers.app import make_app


def main(name: str, schedule_file: str) -> None:
    """Stand until told to end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if os.environ["HANDOVERS_SCHEDULER"].startswith("django"):
        import django

        django.setup()
    app = make_app()
    app.set_current()
    candidate = Candidate(app, name, Config.from_app(app), app.conf.beat_scheduler, schedule_file)
    end = threading.Event()

    def leave(*_: object) -> None:
        candidate.elector.leave()
        end.set()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGUSR1, lambda *_: candidate.elector.resign(0.3))
    candidate.start()
    while not end.wait(1):
        pass
    candidate.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
