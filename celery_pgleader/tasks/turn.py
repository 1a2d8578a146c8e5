"""Has the leader-only runs of one term begin when those of the terms before it have ended.

A leader that loses its session, or resigns, lives on, and so do its runs. The next one leads at once; its leader-only
runs wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psycopg
from celery.utils.log import get_logger

from celery_pgleader.config import Config
from celery_pgleader.election import Term
from celery_pgleader.election.lock_key import turn_key
from celery_pgleader.election.lock_session import session_name
from celery_pgleader.postgres import Session, open_session
from celery_pgleader.store.sql import TRY_TURN
from celery_pgleader.tasks.trust_page import TrustPage
from celery_pgleader.threads import Ending

logger = get_logger(__name__)

GLANCE = 0.05


class Turn:
    """Takes the turn for each term that this node leads, and keeps it until the term's last run has ended."""

    def __init__(self, config: Config, page: TrustPage, on_turn: Callable[[], object]) -> None:
        """Prepare.

        Args:
            config: in which election, and for how long to wait for one's turn.
            page: where to say whose turn it is, and which knows what runs.
            on_turn: called when it is this node's.

        """
        self._config = config
        self._page = page
        self._on_turn = on_turn
        self._never = threading.Event()
        self._waits_for_runs = True

    def run(self, term: Term, ended: Ending) -> None:
        """Take the turn; let go of it when the term has ended, and its runs."""
        lock = TurnLock(self._config, term.node)
        try:
            self._take(lock, term, ended)
            while not ended.wait(self._config.renew_interval):
                lock.hold()
            self._await_runs(lock)
        finally:
            lock.close()

    def _take(self, lock: TurnLock, term: Term, ended: Ending) -> None:
        until = time.monotonic() + self._config.drain_timeout
        while not lock.hold():
            if time.monotonic() >= until:
                logger.warning(
                    "pgleader: leader-only tasks begin although an earlier leader's have not ended within %g s",
                    self._config.drain_timeout,
                )
                break
            if ended.wait(GLANCE):
                return
        self._page.give_turn(term.number)
        self._on_turn()

    def _await_runs(self, lock: TurnLock) -> None:
        until = time.monotonic() + self._config.drain_timeout
        while self._page.has_runs() and self._waits_for_runs and time.monotonic() < until:
            lock.hold()
            self._never.wait(GLANCE)

    def give_up(self) -> None:
        """Let go of it with the term, whatever runs."""
        self._waits_for_runs = False


class TurnLock:
    """An advisory lock, in a session that the server ends if it is not heard of within the ttl.

    So one that is killed or stopped holds it no longer than it holds the lead.
    """

    def __init__(self, config: Config, node: str) -> None:
        """Prepare; nothing is taken before `hold`."""
        self._config = config
        self._node = node
        self._session: Session | None = None
        self._held = False
        self._renew_at = 0.0

    def hold(self) -> bool:
        """Take the lock if it is free, or keep it; tell whether it is held."""
        now = time.monotonic()
        if self._held and now < self._renew_at:
            return True
        try:
            if self._session is None:
                name = session_name("turn", self._node)
                self._session = open_session(self._config.database_url, name, unresponsive_after=self._config.ttl)
            with self._session.bounded(self._config.ttl):
                if self._held:
                    self._session.execute("select 1")
                else:
                    query = TRY_TURN.format(key=turn_key(self._config).as_arguments())
                    row = self._session.execute(query, {"ttl_ms": round(self._config.ttl * 1000)}).fetchone()
                    self._held = bool(row and row[0])
        except (psycopg.Error, OSError) as error:
            logger.debug("pgleader: cannot tell whose turn it is: %s", error)
            self.close()
        self._renew_at = now + self._config.renew_interval
        return self._held

    def close(self) -> None:
        """Let go of it."""
        session, self._session = self._session, None
        self._held = False
        if session is not None:
            session.close()
