"""Keeps a task from being run twice, and runs of one entry from overlapping, whichever worker gets the message."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from typing import Any, Protocol

import psycopg
from celery import signals, states
from celery.exceptions import Ignore, Reject
from celery.utils.log import get_logger

from celery_pgleader.config import Config
from celery_pgleader.policies import Overlap
from celery_pgleader.slot import NOTIFICATION_HEADER, Slot
from celery_pgleader.store.runs import Runs, entry_key, task_key
from celery_pgleader.tasks.run_leadership import RunLeadership
from celery_pgleader.tasks.trust_page import BegunRun, reader

logger = get_logger(__name__)

ENDED = {states.SUCCESS, states.FAILURE, states.REVOKED}
WAIT_PAUSE = 1.0


@dataclass
class GuardedRun:
    """A run that was looked at before it began.

    Attributes:
        task_id: of the task.
        what: it, in words.
        deduplicate: whether its end is to be remembered.
        keys: of the locks that it holds.

    """

    task_id: str
    what: str
    deduplicate: bool
    keys: list[int] = field(default_factory=list)


class RunsPort(Protocol):
    """What a guard needs to know of runs; see `store.runs.Runs`."""

    def begin(self, keys: Iterable[int], /) -> bool:
        """Take the locks of a run; return false, and take none, if one of them is held."""

    def has_finished(self, task_id: str, /) -> bool:
        """Tell whether a task has come to its end before."""

    def finish(self, task_id: str, /) -> None:
        """Write down that a task has come to its end."""

    def skip(self, election: str, entry: str, slot: datetime, reason: str, /) -> None:
        """Write down that a slot was published, but not run."""

    def end(self, keys: Iterable[int], /) -> None:
        """Give the locks of a run back."""


class RunGuard:
    """Asked by every task of a worker before it starts.

    Looked at are only those that were sent for a slot or a durable notification, and whose policy asks for it.
    """

    def __init__(self, config: Config, node: str, runs: Callable[[Config, str], RunsPort] = Runs) -> None:
        """Prepare.

        Args:
            config: where the database is.
            node: the worker's.
            runs: makes what knows of the runs of a process; called in that process, when it is first needed.

        """
        self._config = config
        self._node = node
        self._make_runs = runs
        self._runs: tuple[int, RunsPort] | None = None

    def install(self, app: Any) -> None:
        """Guard the tasks of an app, in this process and in those that it forks."""
        for task in app.tasks.values():
            # Each task has a class of its own, and of an instance's own methods Celery would know nothing.
            cls = type(task)
            if "pgleader_guard" not in cls.__dict__:
                cls.before_start = _guarded(cls.before_start)
            cls.pgleader_guard = self
        signals.task_postrun.connect(_on_postrun, weak=False, dispatch_uid=f"{__name__}.postrun")

    def before_start(self, task: Any, task_id: str) -> None:
        """Raise what makes Celery leave a run out."""
        if getattr(task, "leader_only", False):
            self._lead(task)
        slot = Slot.of_request(task.request)
        notification = task.request.get(NOTIFICATION_HEADER)
        if slot is not None and (slot.deduplicate or slot.overlap != Overlap.ALLOW.value):
            run = GuardedRun(task_id, f"{slot.entry} of {slot.at.isoformat()}", deduplicate=slot.deduplicate)
        elif notification and notification["deduplicate"]:
            run = GuardedRun(
                task_id, f"notification {notification['id']} on {notification['channel']}", deduplicate=True
            )
        else:
            return
        try:
            reason = self._begin(run, slot)
        except psycopg.Error as error:
            logger.warning(
                "pgleader: cannot tell whether %s runs or ran elsewhere, so it is run: %s", run.what, _first_line(error)
            )
            self._end(run)
            return
        if reason is None:
            # On the request, since two deliveries of one message have the same task id.
            task.request.pgleader_run = run
            return
        if reason == "overlap" and slot is not None and slot.overlap == Overlap.WAIT.value:
            # Not by retry(): waiting is none of the attempts that the task allows itself.
            request = task.request
            task.signature_from_request(request, countdown=WAIT_PAUSE, retries=request.retries).apply_async()
            raise Ignore("pgleader: it waits for an earlier run to end")
        logger.info("pgleader: %s is not run: %s", run.what, reason)
        raise Ignore(f"pgleader: {reason}")

    def _lead(self, task: Any) -> None:
        """Have a leader-only task begin under the term that this node leads, or go back to the leader queue."""
        begun = reader.begin()
        if begun is None:
            logger.info("pgleader: %s is not run: this node does not lead, or not for long", task.name)
            raise Reject("pgleader: this node does not lead", requeue=True)
        task.request.pgleader_begun = begun
        task.request.pgleader_leadership = RunLeadership(self._config.election, begun.term)

    def _begin(self, run: GuardedRun, slot: Slot | None) -> str | None:
        """Begin a run; return why it must not be, if so."""
        runs = self._of_this_process()
        if run.deduplicate:
            if not runs.begin([task_key(run.task_id)]):
                return "it is running already"
            run.keys.append(task_key(run.task_id))
            if runs.has_finished(run.task_id):
                self._end(run)
                return "it has been run already"
        if slot is not None and slot.overlap != Overlap.ALLOW.value:
            key = entry_key(slot.election, slot.entry)
            if not runs.begin([key]):
                self._end(run)
                if slot.overlap == Overlap.SKIP.value:
                    self._write_down(run, lambda: runs.skip(slot.election, slot.entry, slot.at, "overlap"))
                return "overlap"
            run.keys.append(key)
        return None

    def after_run(self, task: Any, state: str | None) -> None:
        """Note that a run has ended."""
        begun: BegunRun | None = getattr(task.request, "pgleader_begun", None)
        if begun is not None:
            begun.end()
        run: GuardedRun | None = getattr(task.request, "pgleader_run", None)
        if run is None:
            return
        if run.deduplicate and state in ENDED:
            self._write_down(run, lambda: self._of_this_process().finish(run.task_id))
        self._end(run)

    def _end(self, run: GuardedRun) -> None:
        keys, run.keys = run.keys, []
        # If the session has failed, its locks are gone with it.
        self._write_down(run, lambda: self._of_this_process().end(keys))

    def _write_down(self, run: GuardedRun, call: Callable[[], object]) -> None:
        try:
            call()
        except psycopg.Error as error:
            logger.warning("pgleader: could not write down how %s ended: %s", run.what, _first_line(error))

    def _of_this_process(self) -> RunsPort:
        pid = os.getpid()
        if self._runs is None or self._runs[0] != pid:
            self._runs = pid, self._make_runs(self._config, self._node)
        return self._runs[1]


def _guarded(before_start: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(before_start)
    def guarded(task: Any, task_id: str, args: Any, kwargs: Any) -> Any:
        task.pgleader_guard.before_start(task, task_id)
        return before_start(task, task_id, args, kwargs)

    return guarded


def _on_postrun(task: Any = None, state: str | None = None, **_: Any) -> None:
    guard: RunGuard | None = getattr(task, "pgleader_guard", None)
    if guard is not None:
        guard.after_run(task, state)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
