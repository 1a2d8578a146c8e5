"""Brings back the leader-only messages that a dead leader had taken from Redis.

RabbitMQ sees at once that a consumer is gone. Redis does not: what a worker has taken, and not acknowledged, comes back
after the visibility timeout, an hour by default. Of the leader queue only leaders take messages, and who has led is in
the ledger: once none of them is there any more but this node, what they had taken belongs to nobody.
"""

from __future__ import annotations

from typing import Any

import psycopg
from celery.utils.log import get_logger
from kombu.utils.json import loads

from celery_pgleader.config import Config
from celery_pgleader.election import Term
from celery_pgleader.election.lock_session import session_name
from celery_pgleader.postgres import open_session
from celery_pgleader.store.sql import OTHER_LEADERS
from celery_pgleader.tasks.leader_queue import LeaderQueue
from celery_pgleader.threads import Ending

logger = get_logger(__name__)

# Between one look for earlier leaders and the next.
GLANCE = 1.0
PING_PATIENCE = 1.0


class Orphans:
    """Looks, when a term begins, whether earlier leaders are gone, and then restores what they had taken."""

    def __init__(self, app: Any, config: Config, leader_queue: LeaderQueue) -> None:
        """Prepare.

        Args:
            app: the Celery app.
            config: whose ledger knows who has led.
            leader_queue: whose messages are restored, in the worker's main loop.

        """
        self._app = app
        self._config = config
        self._leader_queue = leader_queue

    def run(self, term: Term, ended: Ending) -> None:
        """Wait until earlier leaders are gone, restore, and wait for the term to end."""
        with self._app.connection_for_read() as connection:
            concerned = connection.transport.driver_type == "redis"
        while concerned and not ended.is_set():
            if self._are_gone(term):
                self._leader_queue.call_in_loop(self._restore)
                break
            ended.wait(GLANCE)
        ended.wait()

    def _are_gone(self, term: Term) -> bool:
        """Tell whether none of the earlier leaders is there any more."""
        try:
            earlier, there = self._look(term)
            if earlier and not there:
                # One that has just lost its session comes back within a moment; its worker would answer meanwhile.
                there = self._app.control.ping(destination=earlier, timeout=PING_PATIENCE) or self._look(term)[1]
        except psycopg.Error as error:
            logger.debug("pgleader: cannot tell whether earlier leaders are gone: %s", error)
            return False
        return not there

    def _look(self, term: Term) -> tuple[list[str], list[str]]:
        """Return who has led before, and which of them are there."""
        config = self._config
        with open_session(config.database_url, session_name("orphans", term.node), unresponsive_after=config.ttl) as db:
            rows = db.execute(OTHER_LEADERS, {"election": term.election, "node": term.node}).fetchall()
            earlier = [node for (node,) in rows]
            sessions = {session_name(role, node): node for node in earlier for role in ("leader", "follower")}
            there = db.execute(
                "select application_name from pg_stat_activity where application_name = any(%(names)s)",
                {"names": list(sessions)},
            ).fetchall()
        return earlier, [sessions[name] for (name,) in there]

    def _restore(self, consumer: Any) -> None:
        channel = consumer.task_consumer.channel
        mine = set(channel.qos._delivered)  # noqa: SLF001 - what this worker has taken itself
        with channel.conn_or_acquire() as client:
            found = [
                _text(tag)
                for tag, packed in client.hscan_iter(channel.unacked_key)
                if loads(_text(packed))[2] == self._leader_queue.name and _text(tag) not in mine
            ]
            for tag in found:
                channel.qos.restore_by_tag(tag, client)
        if found:
            logger.info("pgleader: restored %d leader-only messages that an earlier leader had taken", len(found))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
