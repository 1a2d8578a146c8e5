"""All that a process needs to stand in an election and, when it leads, to run the schedule and to listen."""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial
from typing import Any

from celery.utils.log import get_logger

from celery_pgleader.beat import LeaderBeat
from celery_pgleader.beat.abilities import abilities_of
from celery_pgleader.config import Config
from celery_pgleader.election import Change, Elector, Leadership, LockSession, Term, TermRunner
from celery_pgleader.notifications.dispatcher import Dispatcher
from celery_pgleader.notifications.listener import Listener
from celery_pgleader.notifications.registry import routes
from celery_pgleader.notifications.relay import Relay
from celery_pgleader.signals import leadership_gained, leadership_lost
from celery_pgleader.store import LEDGER_TERMS
from celery_pgleader.store.presence import NodePresence
from celery_pgleader.threads import Ending, Inbox
from celery_pgleader.worker.steward import Steward
from celery_pgleader.worker.tally import Tally

logger = get_logger(__name__)


class Candidate:
    """Builds an elector and those who follow its leadership; starts them in order, stops them in reverse."""

    def __init__(
        self,
        app: Any,
        node: str,
        config: Config,
        scheduler: Any,
        schedule_filename: str,
        leadership: Leadership | None = None,
        *,
        consumed: Container[str] = (),
        is_busy: Callable[[], bool] = lambda: False,
        runs: Callable[[], int] = lambda: 0,
    ) -> None:
        """Put everything together.

        Args:
            app: the Celery app.
            node: who stands.
            config: in which election, and where.
            scheduler: the beat scheduler's class, or its name.
            schedule_filename: where a scheduler that keeps a file keeps it.
            leadership: who is told; by default a new one.
            consumed: names of the queues that the process consumes.
            is_busy: whether this is no moment to hand over without being told to.
            runs: how many leader-only runs have begun here.

        """
        self._config = config
        self._node = node
        self.leadership = leadership or Leadership()
        beat = LeaderBeat(app, scheduler, schedule_filename, config, self.leadership)
        self.presence = NodePresence(config, node, abilities_of(app, scheduler, consumed))
        tally = Tally(runs)
        self.elector = Elector(
            config,
            node,
            leadership=self.leadership,
            open_session=partial(LockSession.open, terms=LEDGER_TERMS, presence=self.presence),
            trouble=beat.trouble,
            renewed=tally.renewed,
            logger=logger,
        )
        self._changes: Inbox[Change] = Inbox("leadership signals", self._send_signal, logger)
        steward = Steward(
            config, self.leadership, self.presence, partial(self.elector.resign, None), beat.look, is_busy, tally.totals
        )
        self._runners = [
            TermRunner(self.leadership, "beat", beat.run, logger, failed=self.elector.step_back),
            TermRunner(self.leadership, "steward", steward.run, logger),
        ]
        channels = routes(app, config.channels)
        if channels:
            listener = Listener(config, self.leadership, channels, Dispatcher(app, channels).dispatch)
            relay = Relay(app, config, self.leadership, channels)
            self._runners += [
                TermRunner(self.leadership, "listener", listener.run, logger),
                TermRunner(self.leadership, "relay", relay.run, logger),
            ]

    def follow(self, name: str, run: Callable[[Term, Ending], None]) -> None:
        """Have something more called for each term; to be said before `start`."""
        self._runners.append(TermRunner(self.leadership, name, run, logger))

    def start(self) -> None:
        """Begin to stand for the election. Never raises: a database that is away is waited for."""
        logger.info("pgleader: standing for election %s (database %s)", self._config.election, self._config.database)
        if self.presence.stands_back is not None:
            logger.warning("pgleader: this node does not lead: %s", self.presence.stands_back)
        self.leadership.subscribe(self._changes.put)
        self._changes.start()
        for runner in self._runners:
            runner.start()
        self.elector.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Leave and end all threads, waiting for each at most `timeout` seconds."""
        self.elector.stop(timeout)
        for runner in reversed(self._runners):
            runner.stop(timeout)
        self._changes.stop(timeout)

    def info(self) -> dict[str, Any]:
        """Return what `celery inspect stats` shows."""
        term = self.leadership.term
        return {
            "election": self._config.election,
            "node": self._node,
            "phase": self.elector.phase.value,
            "term": term.number if term else None,
            "priority": self._config.priority,
            "stands_back": self.presence.stands_back,
        }

    def _send_signal(self, change: Change) -> None:
        signal = leadership_gained if change.gained else leadership_lost
        signal.send(sender=self._node, term=change.term, reason=change.reason)
