"""Sends raw notifications."""

from __future__ import annotations

import threading
from typing import Any

from psycopg import Error

from celery_pgleader.channels import check_channel
from celery_pgleader.config import Config
from celery_pgleader.election.lock_session import session_name
from celery_pgleader.notifications.payload import encode
from celery_pgleader.postgres import Session, open_session

NOTIFY = "select pg_notify(%(channel)s, %(payload)s)"


class Notifier:
    """Sends notifications through one session, opened when first needed and again when it was lost."""

    def __init__(self, config: Config, node: str) -> None:
        """Prepare; nothing is opened yet."""
        self._config = config
        self._name = session_name("notifier", node)
        self._lock = threading.Lock()
        self._session: Session | None = None

    def notify(self, channel: str, value: Any) -> None:
        """Send a JSON value to those who listen on the channel now.

        Raises:
            NotificationError: the value is no JSON, or too long.
            ConfigurationError: Postgres would not take the channel's name.
            psycopg.Error: it could not be sent.

        """
        parameters = {"channel": check_channel("channel", channel), "payload": encode(value)}
        with self._lock:
            session = self._open()
            try:
                with session.bounded(self._config.ttl):
                    session.execute(NOTIFY, parameters)
            except Error:
                self._discard()
                raise

    def close(self) -> None:
        """End the session."""
        with self._lock:
            self._discard()

    def _open(self) -> Session:
        if self._session is not None and not self._session.is_alive():
            self._discard()
        if self._session is None:
            url = self._config.database_url
            self._session = open_session(url, self._name, unresponsive_after=self._config.ttl, pooled=True)
        return self._session

    def _discard(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
