"""Hears notifications while this node leads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import closing

from psycopg import Error, sql

from celery_pgleader.config import Config
from celery_pgleader.election.leadership import Leadership, Term
from celery_pgleader.election.lock_session import session_name
from celery_pgleader.notifications.payload import Notification
from celery_pgleader.postgres import Session, open_session
from celery_pgleader.threads import Doorbell, Ending

logger = logging.getLogger(__name__)


class Listener:
    """LISTENs on channels, in a session of its own, for one term at a time.

    Only a leader listens: each idle listener slows every NOTIFY of the database down.
    """

    def __init__(
        self,
        config: Config,
        leadership: Leadership,
        channels: Iterable[str],
        handle: Callable[[Notification, Term], None],
    ) -> None:
        """Prepare; nothing is heard before `run`.

        Args:
            config: which database.
            leadership: asked before each notification is handed over.
            channels: the channels, by their exact names.
            handle: gets each notification, in order; must not raise.

        """
        self._config = config
        self._leadership = leadership
        self._channels = tuple(channels)
        self._handle = handle

    def run(self, term: Term, ended: Ending) -> None:
        """Listen until the term ends, or until the session fails: what is sent until the next call is lost."""
        try:
            self._run(term, ended)
        except Error as error:
            if not ended.is_set():
                logger.warning("pgleader: the listener lost its session: %s", str(error).strip().splitlines()[0])

    def _run(self, term: Term, ended: Ending) -> None:
        name = session_name("listener", term.node)
        with (
            closing(Doorbell()) as bell,
            open_session(self._config.database_url, name, unresponsive_after=self._config.ttl) as session,
        ):
            ended.ring(bell)
            for channel in self._channels:
                session.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            while not ended.is_set():
                self._hear(session, term, ended, bell)
                # A connection cut without a word looks like silence; only an answer proves that it is not.
                if not ended.is_set():
                    with session.bounded(self._config.ttl):
                        session.execute("select 1")

    def _hear(self, session: Session, term: Term, ended: Ending, bell: Doorbell) -> None:
        until = time.monotonic() + self._config.ttl
        while not ended.is_set() and (left := until - time.monotonic()) > 0:
            for heard in session.hear(left, bell):
                with self._leadership.acting():
                    if not self._leadership.trusted(term):
                        return
                    self._handle(Notification(heard.channel, heard.payload, heard.pid), term)
