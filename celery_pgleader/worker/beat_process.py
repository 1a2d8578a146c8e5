"""`celery -A proj beat -S pgleader`: the same election among beat processes, for teams that keep beat apart."""

from __future__ import annotations

import os
import socket
from typing import Any

from celery.beat import PersistentScheduler, Scheduler

from celery_pgleader.beat.entries import check_entries
from celery_pgleader.beat.leader_beat import scheduler_class
from celery_pgleader.config import Config
from celery_pgleader.errors import ConfigurationError
from celery_pgleader.worker.candidate import Candidate
from celery_pgleader.worker.refusal import Refused

# How often Celery's loop is let turn; all the work is done in threads.
TURN = 1.0


class PgLeaderScheduler(Scheduler):
    """Runs the app's own scheduler, `beat_scheduler`, while this process leads.

    With `beat_scheduler = "pgleader"` that is Celery's default one.
    """

    _candidate: Candidate | None = None

    def __init__(self, app: Any, *args: Any, schedule_filename: str = "celerybeat-schedule", **kwargs: Any) -> None:
        """Check the configuration; nothing happens before the first tick.

        Raises:
            ConfigurationError: it cannot work.

        """
        self._schedule_filename = schedule_filename
        try:
            self._inner = self._scheduler_of(app)
            check_entries(app.conf.beat_schedule, self._inner)
            self._config = Config.from_app(app)
        except ConfigurationError as error:
            raise Refused(str(error)) from error
        super().__init__(app, *args, **kwargs)

    def setup_schedule(self) -> None:
        """Do nothing: the leader's scheduler sets it up."""

    def tick(self, *_: Any, **__: Any) -> float:
        """Begin to stand, the first time."""
        if self._candidate is None:
            node = f"beat-{os.getpid()}@{socket.gethostname()}"
            self._candidate = Candidate(self.app, node, self._config, self._inner, self._schedule_filename)
            self._candidate.start()
        return TURN

    def sync(self) -> None:
        """Do nothing: the leader's scheduler writes its state."""

    def close(self) -> None:
        """Leave the election."""
        candidate, self._candidate = self._candidate, None
        if candidate is not None:
            candidate.stop()
        super().close()

    @staticmethod
    def _scheduler_of(app: Any) -> type[Scheduler]:
        wanted = scheduler_class(app.conf.beat_scheduler)
        return PersistentScheduler if issubclass(wanted, PgLeaderScheduler) else wanted

    @property
    def info(self) -> str:
        """What Celery's banner shows."""
        return f"    . election -> {self._config.election}\n    . database -> {self._config.database}"
