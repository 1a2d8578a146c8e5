"""Notices whoever else sends the schedule: a `celery beat` that was left running, or the leader of another election."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from celery.beat import PersistentScheduler, Scheduler
from celery.utils.log import get_logger

from celery_pgleader.beat.leader_beat import scheduler_class
from celery_pgleader.config import Config
from celery_pgleader.election.observer import observe
from celery_pgleader.errors import ConfigurationError
from celery_pgleader.postgres import Error
from celery_pgleader.slot import HEADER
from celery_pgleader.worker.beat_process import PgLeaderScheduler

logger = get_logger(__name__)

# What a beat says of itself in a message: Celery's, from 5.7 on, and that of django-celery-beat.
BEAT_HEADERS = ("celery_beat_task", "periodic_task_name")

BESIDE_BEAT = (
    "pgleader: %s was sent by a celery beat that takes no part in election %s: while both send, everything is run"
    " twice. If it still runs, stop it (`celery beat`, or a worker with -B), or start it with -S pgleader"
)
TWO_ELECTIONS = (
    "pgleader: %s was sent by the leader of election %s, and this worker takes part in election %s: while both have a"
    " leader, everything is run twice. Give all workers of the app the same pgleader_election"
)


class OtherSenders:
    """Looks at the messages of tasks that are in the schedule, and warns once of either kind."""

    def __init__(self, app: Any, scheduler: Any, election: str) -> None:
        """Prepare.

        Args:
            app: the Celery app.
            scheduler: `beat_scheduler`: a class, its dotted name, or an alias that a package has registered.
            election: in which the worker takes part.

        """
        self._app = app
        self._scheduler = scheduler
        self._election = election
        self._said: set[str] = set()

    def watch(self, consumer: Any) -> None:
        """Look at what a consumer that is connecting will receive."""
        for task in self._scheduled():
            handle = consumer.strategies.get(task)
            if handle is not None:
                consumer.strategies[task] = self._watched(task, handle)

    def look(self, task: str, headers: Any) -> None:
        """Look at the headers of a message."""
        if not isinstance(headers, dict):
            return
        slot = headers.get(HEADER)
        if slot is None:
            if any(name in headers for name in BEAT_HEADERS):
                self._warn(BESIDE_BEAT, task, self._election)
        elif isinstance(slot, dict) and slot.get("election") != self._election:
            entry = str(slot.get("entry"))
            # Other apps may send to this one's queues, in elections of their own.
            if entry in self._app.conf.beat_schedule:
                self._warn(TWO_ELECTIONS, entry, slot.get("election"), self._election)

    def _scheduled(self) -> Iterable[str]:
        """Return the names of the tasks that may be in the schedule."""
        found = scheduler_class(self._scheduler)
        if found is Scheduler or issubclass(found, PersistentScheduler):
            entries = self._app.conf.beat_schedule.values()
            return {entry["task"] if isinstance(entry, dict) else entry.task for entry in entries}
        # A scheduler with a database of its own knows more entries than can be seen from here.
        return list(self._app.tasks)

    def _watched(self, task: str, handle: Callable[..., Any]) -> Callable[..., Any]:
        def watched(message: Any, *args: Any, **options: Any) -> Any:
            self.look(task, message.headers)
            return handle(message, *args, **options)

        return watched

    def _warn(self, words: str, *args: object) -> None:
        if words not in self._said:
            self._said.add(words)
            logger.warning(words, *args)


def look_from_beat(service: Any) -> None:
    """Have a `celery beat` that has just been started say so if its app's schedule has a leader already."""
    if not issubclass(scheduler_class(service.scheduler_cls), PgLeaderScheduler):
        # A database that is away must not hold the beat up.
        threading.Thread(target=_look_for_leader, args=[service.app], name="pgleader-look", daemon=True).start()


def _look_for_leader(app: Any) -> None:
    try:
        config = Config.from_app(app)
        leader = next((seat for seat in observe(config) if seat.role == "leader"), None)
    except (ConfigurationError, Error, OSError):
        # Nobody has said that there is an election, or it cannot be asked: workers will see what this beat sends.
        return
    if leader is not None:
        logger.warning(
            "pgleader: %s leads election %s and runs this app's schedule: beside this beat, everything is run twice."
            " Stop this beat, or start it with -S pgleader",
            leader.node,
            config.election,
        )
