"""The session through which the dashboard asks the database, for all who look."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import psycopg

from celery_pgleader.config import Config
from celery_pgleader.postgres import Session, open_session

T = TypeVar("T")

# Nothing that is asked takes longer, unless the server is in trouble.
PATIENCE = 5.0
# A handover may have to wait until a node is in line.
LONGEST_ORDER = 60.0


class Source:
    """One session, opened when it is needed and after it was lost; one question at a time."""

    def __init__(self, config: Config) -> None:
        """Prepare."""
        self._config = config
        self._turn = threading.Lock()
        self._session: Session | None = None

    def ask(self, question: Callable[[Config, Session], T]) -> T:
        """Return the answer to a question.

        Raises:
            psycopg.Error: the database could not be asked.

        """
        with self._turn:
            if self._session is None or self._session.closed:
                self._session = self._open()
            try:
                with self._session.bounded(PATIENCE):
                    return question(self._config, self._session)
            except BaseException:
                self._close()
                raise

    def order(self, order: Callable[[Config, Session], T]) -> T:
        """Return what became of an order, which may take its time, and so has a session of its own.

        Raises:
            psycopg.Error: the database could not be asked.

        """
        with self._open() as session, session.bounded(LONGEST_ORDER):
            return order(self._config, session)

    def close(self) -> None:
        """End the session."""
        with self._turn:
            self._close()

    def _open(self) -> Session:
        return open_session(
            self._config.database_url, "pgleader dashboard", unresponsive_after=self._config.ttl, pooled=True
        )

    def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(psycopg.Error):
                session.close()
