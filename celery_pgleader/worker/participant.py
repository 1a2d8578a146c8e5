"""All that one worker needs to take part in its election."""

from __future__ import annotations

import threading
import time
from typing import Any

from celery.utils.log import get_logger

from celery_pgleader.config import Config
from celery_pgleader.election import Leadership
from celery_pgleader.tasks import queue_name, route_leader_only_tasks
from celery_pgleader.tasks.leader_queue import LeaderQueue
from celery_pgleader.tasks.orphans import Orphans
from celery_pgleader.tasks.trust_page import TrustPage, reader
from celery_pgleader.tasks.turn import Turn
from celery_pgleader.worker.announcer import Announcer
from celery_pgleader.worker.candidate import Candidate
from celery_pgleader.worker.other_senders import OtherSenders

logger = get_logger(__name__)

DRAIN_GLANCE = 0.02


class Participant:
    """A candidate that also consumes the leader queue, and leaves when its leader-only tasks have ended."""

    def __init__(self, worker: Any, config: Config) -> None:
        """Put everything together.

        Args:
            worker: the Celery worker.
            config: its configuration.

        """
        app = worker.app
        self._drain_timeout = config.drain_timeout
        # Before the pool's first process is forked.
        self._page = TrustPage()
        self.leadership = Leadership(tell=self._page.write)
        reader.also_ask(self.leadership.trusted)
        self._announcer = Announcer()
        self._other_senders = OtherSenders(app, worker.scheduler, config.election)
        self.leader_queue = LeaderQueue(queue_name(config.election), self.leadership)
        self._candidate = Candidate(
            app,
            worker.hostname,
            config,
            worker.scheduler,
            worker.schedule_filename,
            self.leadership,
            consumed=app.amqp.queues.consume_from,
            is_busy=self._page.has_runs,
            runs=self._page.runs_begun,
        )
        self._elector = self._candidate.elector
        self.leader_queue.leave_out(app)
        self._turn = Turn(config, self._page, self.leader_queue.ask_for_reconcile)
        # Without such tasks the leader queue is nobody's business here, and what is in it waits.
        if route_leader_only_tasks(app, config.election):
            self._candidate.follow("turn", self._turn.run)
            self._candidate.follow("keeper of orphans", Orphans(app, config, self.leader_queue).run)
        self._draining: threading.Thread | None = None

    def start(self) -> None:
        """Begin to stand for the election. Never raises: a database that is away is waited for."""
        self.leadership.subscribe(self.leader_queue.on_change)
        self.leadership.subscribe(self._announcer.on_change)
        self._candidate.start()

    def attach(self, consumer: Any) -> None:
        """Follow the leadership with a new connection to the broker."""
        self._announcer.attach(consumer)
        self.leader_queue.attach(consumer)
        self._other_senders.watch(consumer)

    def detach(self) -> None:
        """Let go of a connection."""
        self._announcer.detach()
        self.leader_queue.detach()

    def resign(self, stand_back: float | None = None) -> None:
        """Let another node lead, and stand back for so many seconds; return at once."""
        self._elector.resign(stand_back)

    def hold(self) -> None:
        """Lead no more, until `campaign`; return at once."""
        self._candidate.presence.hold(on=True)
        self._elector.resign(reason="on hold")

    def campaign(self) -> None:
        """Stand again, and now; return at once."""
        self._candidate.presence.hold(on=False)
        self._elector.campaign()

    def wind_down(self) -> None:
        """Stand no more, take no more leader-only work and, with none of it running, leave at once.

        Safe in a signal handler, and to be called more than once.
        """
        self._elector.retire()
        self.leader_queue.close()
        self._page.shut()
        if not self._page.has_runs():
            self._elector.leave()

    def drain(self) -> None:
        """Leave as soon as the last leader-only task has ended, or has taken too long; return at once.

        The beat goes on meanwhile, so that a long task does not hold the schedule up. What has not begun goes back to
        the leader queue. To be called in the worker's main loop only.
        """
        if self._draining is None:
            self._draining = threading.Thread(target=self._drain, name="pgleader-drain", daemon=True)
            self._draining.start()
        self.leader_queue.reconcile()

    def leave(self) -> None:
        """Leave now, whatever runs; return at once."""
        self._elector.leave()

    def stop(self, timeout: float = 2.0) -> None:
        """Leave and end all threads, waiting for each at most `timeout` seconds."""
        self._candidate.stop(timeout)
        self._page.close()

    def info(self) -> dict[str, Any]:
        """Return what `celery inspect stats` shows."""
        return self._candidate.info()

    def _drain(self) -> None:
        never = threading.Event()
        until = time.monotonic() + self._drain_timeout
        while self._page.has_runs():
            if time.monotonic() > until:
                logger.warning(
                    "pgleader: leaving although leader-only tasks have not ended within %g s", self._drain_timeout
                )
                self._turn.give_up()
                break
            never.wait(DRAIN_GLANCE)
        self._elector.leave()
