"""All that one worker needs to take part in its election."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from celery.utils.log import get_logger

from celery_pgleader.beat import LeaderBeat
from celery_pgleader.config import Config
from celery_pgleader.election import Change, Elector, Leadership, LockSession, TermRunner
from celery_pgleader.notifications.dispatcher import Dispatcher
from celery_pgleader.notifications.listener import Listener
from celery_pgleader.notifications.registry import routes
from celery_pgleader.signals import leadership_gained, leadership_lost
from celery_pgleader.store import LEDGER_TERMS
from celery_pgleader.tasks import queue_name, route_leader_only_tasks
from celery_pgleader.tasks.leader_queue import LeaderQueue
from celery_pgleader.threads import Inbox

logger = get_logger(__name__)

DRAIN_GLANCE = 0.02


class Participant:
    """Builds a worker's elector and all who follow its leadership; starts them in order, stops them in reverse."""

    def __init__(self, worker: Any, config: Config) -> None:
        """Put everything together.

        Args:
            worker: the Celery worker.
            config: its configuration.

        """
        app = worker.app
        self._config = config
        self._node: str = worker.hostname
        self.leadership = Leadership()
        beat = LeaderBeat(app, worker.scheduler, worker.schedule_filename, config, self.leadership)
        self._elector = Elector(
            config,
            self._node,
            leadership=self.leadership,
            open_session=partial(LockSession.open, terms=LEDGER_TERMS),
            trouble=beat.trouble,
            logger=logger,
        )
        self.leader_queue = LeaderQueue(queue_name(config.election), self.leadership)
        self.leader_queue.leave_out(app)
        route_leader_only_tasks(app, config.election)
        self._changes: Inbox[Change] = Inbox("leadership signals", self._send_signal, logger)

        self._runners = [TermRunner(self.leadership, "beat", beat.run, logger, failed=self._elector.step_back)]
        channels = routes(app, config.channels)
        if channels:
            listener = Listener(config, self.leadership, channels, Dispatcher(app, channels).dispatch)
            self._runners.append(TermRunner(self.leadership, "listener", listener.run, logger))

        self._draining: threading.Thread | None = None

    def start(self) -> None:
        """Begin to stand for the election. Never raises: a database that is away is waited for."""
        logger.info("pgleader: standing for election %s (database %s)", self._config.election, self._config.database)
        self.leadership.subscribe(self._changes.put)
        self.leadership.subscribe(self.leader_queue.on_change)
        self._changes.start()
        for runner in self._runners:
            runner.start()
        self._elector.start()

    def wind_down(self) -> None:
        """Stand no more, take no more leader-only work and, with none of it running, leave at once.

        Safe in a signal handler, and to be called more than once.
        """
        self._elector.retire()
        self.leader_queue.close()
        if not self.leader_queue.is_busy():
            self._elector.leave()

    def drain(self) -> None:
        """Leave as soon as the last leader-only task has ended; return at once.

        The beat goes on meanwhile, so that a long task does not hold the schedule up.
        """
        if self._draining is None:
            self._draining = threading.Thread(target=self._drain, name="pgleader-drain", daemon=True)
            self._draining.start()

    def leave(self) -> None:
        """Leave now, whatever runs; return at once."""
        self._elector.leave()

    def stop(self, timeout: float = 2.0) -> None:
        """Leave and end all threads, waiting for each at most `timeout` seconds."""
        self._elector.stop(timeout)
        for runner in reversed(self._runners):
            runner.stop(timeout)
        self._changes.stop(timeout)

    def info(self) -> dict[str, Any]:
        """Return what `celery inspect stats` shows."""
        term = self.leadership.term
        return {
            "election": self._config.election,
            "node": self._node,
            "phase": self._elector.phase.value,
            "term": term.number if term else None,
        }

    def _drain(self) -> None:
        never = threading.Event()
        while self.leader_queue.is_busy():
            never.wait(DRAIN_GLANCE)
        self._elector.leave()

    def _send_signal(self, change: Change) -> None:
        signal = leadership_gained if change.gained else leadership_lost
        signal.send(sender=self._node, term=change.term, reason=change.reason)
