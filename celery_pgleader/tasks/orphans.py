"""Brings back the leader-only messages that a dead leader had taken from Redis.

RabbitMQ sees at once that a consumer is gone. Redis does not: what a worker has taken, and not acknowledged, comes back
after the visibility timeout, an hour by default. Of the leader queue only leaders take messages, and who has led is in
the ledger: those of them that are still there tell what they have in hand, and the rest belongs to nobody.
"""

from __future__ import annotations

from typing import Any

import psycopg
from celery.utils.log import get_logger
from celery.worker.control import inspect_command
from kombu.exceptions import OperationalError
from kombu.utils.json import loads

from celery_pgleader.config import Config
from celery_pgleader.election import Term
from celery_pgleader.election.lock_session import session_name
from celery_pgleader.postgres import Session, open_session
from celery_pgleader.store.sql import OTHER_LEADERS, SESSIONS_NAMED
from celery_pgleader.tasks.leader_queue import LeaderQueue
from celery_pgleader.threads import Ending

logger = get_logger(__name__)

COMMAND = "pgleader_held"
# Those of whom one session is there as long as the worker is: with its place in the line gone, a worker whose main loop
# is busy with a leader-only run, and so does not answer, still has the turn.
ROLES = ("leader", "follower", "turn", "leaving")
# Between one attempt and the next.
GLANCE = 0.25
# The same, while an earlier leader has something in hand.
LONG_GLANCE = 5.0
# Between one look for a new connection to the broker and the next.
QUIET = 1.0
# Between Redis giving a message to a worker and the worker knowing of it.
SETTLED_WITHIN = 0.1
# Long enough for a worker that has lost its session to open another, and too short for one to start.
ANSWER_PATIENCE = 0.4


class Orphans:
    """Restores, when a term begins, what earlier leaders had taken that are gone, or that have it no more."""

    def __init__(self, app: Any, config: Config, leader_queue: LeaderQueue) -> None:
        """Prepare.

        Args:
            app: the Celery app.
            config: whose ledger knows who has led.
            leader_queue: whose messages are restored.

        """
        self._app = app
        self._config = config
        self._leader_queue = leader_queue
        # Closed by the end of the process, and not before.
        self._farewell: Session | None = None

    def run(self, term: Term, ended: Ending) -> None:
        """Restore once that is safe, and again after each reconnect to the broker, until the term ends."""
        with self._app.connection_for_read() as connection:
            concerned = connection.transport.driver_type == "redis"
        done_with = -1
        while concerned and not ended.is_set():
            number = self._leader_queue.connections
            if number != done_with:
                pause = self._attempt(term, ended)
                done_with = number if pause is None else -1
            ended.wait(pause or QUIET)
        ended.wait()
        if concerned and self._leader_queue.closed:
            self._say_farewell(term)

    def _say_farewell(self, term: Term) -> None:
        """Be known to be there until the process ends: only then is what it has acknowledged or given back."""
        try:
            self._farewell = self._open("leaving", term.node)
        except psycopg.Error as error:
            logger.debug("pgleader: the next leader cannot know how long this worker takes to end: %s", error)

    def _attempt(self, term: Term, ended: Ending) -> float | None:
        """Restore what belongs to nobody; return when to try again, or none if there is nothing left to restore."""
        with self._app.connection_for_read() as connection:
            try:
                return self._restore(term, connection, ended)
            except (psycopg.Error, OSError, OperationalError, *connection.connection_errors) as error:
                logger.debug("pgleader: cannot tell whether earlier leaders are gone: %s", error)
                return GLANCE

    def _restore(self, term: Term, connection: Any, ended: Ending) -> float | None:
        channel = connection.default_channel
        # First what was taken, then who has it.
        taken = self._taken(channel)
        if not taken:
            return None
        ended.wait(SETTLED_WITHIN)
        held = self._held(term, connection)
        mine = self._leader_queue.held()
        # A message keeps its tag: if the next leader has restored one, it may have it in hand.
        if held is None or mine is None or ended.is_set():
            return GLANCE
        orphans = [tag for tag in taken if tag not in held | mine]
        with channel.conn_or_acquire() as client:
            for tag in orphans:
                channel.qos.restore_by_tag(tag, client)
        if orphans:
            logger.info("pgleader: restored %d leader-only messages that an earlier leader had taken", len(orphans))
        # Whoever has one may yet die.
        return LONG_GLANCE if held.intersection(taken) else None

    def _taken(self, channel: Any) -> list[str]:
        """Return the tags of all messages of the leader queue that somebody has taken."""
        with channel.conn_or_acquire() as client:
            return [
                _text(tag)
                for tag, packed in client.hscan_iter(channel.unacked_key)
                if loads(_text(packed))[2] == self._leader_queue.name
            ]

    def _held(self, term: Term, connection: Any) -> set[str] | None:
        """Return what earlier leaders have in hand, or none if one of them is there and does not say."""
        earlier, there = self._look(term)
        if not earlier:
            return set()
        replies = self._app.control.broadcast(
            COMMAND,
            destination=earlier,
            reply=True,
            timeout=ANSWER_PATIENCE,
            limit=len(earlier),
            connection=connection,
        )
        answers = {node: answer for reply in replies or () for node, answer in reply.items() if "held" in answer}
        # One that has just lost its session comes back within a moment.
        there += self._look(term)[1]
        if not answers.keys() >= set(there):
            return None
        return {tag for answer in answers.values() for tag in answer["held"]}

    def _look(self, term: Term) -> tuple[list[str], list[str]]:
        """Return who has led before, and which of them are there."""
        with self._open("orphans", term.node) as db:
            rows = db.execute(OTHER_LEADERS, {"election": term.election, "node": term.node}).fetchall()
            earlier = [node for (node,) in rows]
            sessions = {session_name(role, node): node for node in earlier for role in ROLES}
            there = db.execute(SESSIONS_NAMED, {"names": list(sessions)}).fetchall()
        return earlier, [sessions[name] for (name,) in there]

    def _open(self, purpose: str, node: str) -> Session:
        config = self._config
        return open_session(config.database_url, session_name(purpose, node), unresponsive_after=config.ttl)


@inspect_command(name=COMMAND, visible=False)
def _on_command(panel: Any, **_: Any) -> dict[str, list[str]]:
    """Tell which messages of its leader queue this worker has in hand."""
    participant = getattr(panel.consumer.controller, "pgleader", None)
    held = participant.leader_queue.held() if participant is not None else set()
    return {"held": sorted(held)} if held is not None else {}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
