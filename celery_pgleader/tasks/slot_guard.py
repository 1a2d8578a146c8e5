"""Keeps a slot from being run twice, and runs of one entry from overlapping, whichever worker gets the message."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import psycopg
from celery import signals, states
from celery.exceptions import Ignore
from celery.utils.log import get_logger

from celery_pgleader.config import Config
from celery_pgleader.policies import Overlap
from celery_pgleader.slot import Slot
from celery_pgleader.store.runs import Runs, entry_key, slot_key

logger = get_logger(__name__)

ENDED = {states.SUCCESS, states.FAILURE, states.REVOKED}
WAIT_PAUSE = 1.0


class SlotGuard:
    """Asked by every task of a worker before it starts; only those that were sent for a slot are looked at."""

    def __init__(self, config: Config, node: str) -> None:
        """Prepare; no session is opened before one is needed, in the process in which it is."""
        self._config = config
        self._node = node
        self._runs: tuple[int, Runs] | None = None
        self._going_on: dict[str, tuple[Slot, list[int]]] = {}

    def install(self, app: Any) -> None:
        """Guard the tasks of an app, in this process and in those that it forks. To be called once."""
        for task in app.tasks.values():
            # Each task has a class of its own, and of an instance's own methods Celery would know nothing.
            cls = type(task)
            if "pgleader_guard" not in cls.__dict__:
                cls.pgleader_guard = self
                cls.before_start = _guarded(cls.before_start)
        signals.task_postrun.connect(self._on_postrun, weak=False, dispatch_uid=f"{__name__}.postrun")

    def before_start(self, task: Any, task_id: str) -> None:
        """Raise what makes Celery leave a run out, or put it off."""
        slot = Slot.of_request(task.request)
        if slot is None or not (slot.deduplicate or slot.overlap != Overlap.ALLOW.value):
            return
        try:
            reason = self._begin(slot, task_id)
        except psycopg.Error as error:
            logger.warning(
                "pgleader: cannot tell whether %s of %s runs or ran elsewhere, so it is run: %s",
                slot.entry,
                slot.at.isoformat(),
                str(error).strip(),
            )
            return
        if reason is None:
            return
        if reason == "overlap" and slot.overlap == Overlap.WAIT.value:
            raise task.retry(countdown=WAIT_PAUSE, max_retries=None, throw=False)
        logger.info("pgleader: %s of %s is not run: %s", slot.entry, slot.at.isoformat(), reason)
        raise Ignore(f"pgleader: {reason}")

    def _begin(self, slot: Slot, task_id: str) -> str | None:
        """Begin a run; return why it must not be, if so."""
        runs = self._of_this_process()
        if slot.deduplicate:
            key = slot_key(slot.election, slot.entry, slot.at)
            if not runs.begin([key]):
                return "it is running already"
            if runs.has_finished(slot.entry, slot.at):
                runs.end([key])
                return "it has been run already"
            self._going_on[task_id] = slot, [key]
        if slot.overlap != Overlap.ALLOW.value:
            key = entry_key(slot.election, slot.entry)
            _, keys = self._going_on.setdefault(task_id, (slot, []))
            if not runs.begin([key]):
                runs.end(self._going_on.pop(task_id)[1])
                if slot.overlap == Overlap.SKIP.value:
                    runs.skip(slot.entry, slot.at, "overlap")
                return "overlap"
            keys.append(key)
        return None

    def _on_postrun(self, task_id: str, state: str | None = None, **_: Any) -> None:
        slot, keys = self._going_on.pop(task_id, (None, []))
        if slot is None:
            return
        runs = self._of_this_process()
        try:
            if slot.deduplicate and state in ENDED:
                runs.finish(slot.entry, slot.at)
            runs.end(keys)
        except psycopg.Error as error:
            # Its locks are gone with the session.
            logger.warning(
                "pgleader: could not write down that %s of %s has ended: %s",
                slot.entry,
                slot.at.isoformat(),
                str(error).strip(),
            )

    def _of_this_process(self) -> Runs:
        pid = os.getpid()
        if self._runs is None or self._runs[0] != pid:
            self._runs = pid, Runs(self._config, self._node)
        return self._runs[1]


def _guarded(before_start: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(before_start)
    def guarded(task: Any, task_id: str, args: Any, kwargs: Any) -> Any:
        task.pgleader_guard.before_start(task, task_id)
        return before_start(task, task_id, args, kwargs)

    return guarded
