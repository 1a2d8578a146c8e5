"""Drives the app's beat scheduler during a term."""

from __future__ import annotations

import threading
from typing import Any

from celery.beat import Scheduler
from celery.utils.imports import load_extension_class_names, symbol_by_name
from celery.utils.log import get_logger

from celery_pgleader.beat.scheduler import TermOver, bind
from celery_pgleader.election import Leadership, Term

logger = get_logger(__name__)


class LeaderBeat:
    """Runs the app's beat scheduler, a new instance for each term.

    `celery.beat.Service` is left out on purpose: it sleeps for up to `beat_max_loop_interval` and cannot be woken.
    """

    def __init__(self, app: Any, scheduler: Any, schedule_filename: str, leadership: Leadership) -> None:
        """Prepare.

        Args:
            app: the Celery app.
            scheduler: `beat_scheduler`: a class, its dotted name, or an alias that a package has registered.
            schedule_filename: where a scheduler that keeps a file keeps it.
            leadership: asked before each entry is dispatched.

        """
        aliases: dict[str, str] = dict(load_extension_class_names("celery.beat_schedulers"))  # type: ignore[arg-type]  # the stubs err
        self._scheduler_class: type[Scheduler] = symbol_by_name(scheduler, aliases=aliases)
        self._app = app
        self._schedule_filename = schedule_filename
        self._leadership = leadership

    def run(self, term: Term, ended: threading.Event) -> None:
        """Tick until the term ends. What the scheduler raises is raised."""
        # To its very end, so that the next leader finds the schedule's state written and closed.
        with self._leadership.acting():
            self._run(term, ended)

    def _run(self, term: Term, ended: threading.Event) -> None:
        def may_act() -> bool:
            return not ended.is_set() and self._leadership.trusted(term)

        if not may_act():
            return
        scheduler: Any = None
        try:
            scheduler = bind(self._scheduler_class, may_act)(app=self._app, schedule_filename=self._schedule_filename)
            # What was sent must be remembered by the time somebody else reads the schedule, not minutes later.
            scheduler.sync_every_tasks = scheduler.sync_every_tasks or 1
            # RedBeat's own lock, taken by a receiver of `beat_init`, which a worker never sends. Ours is taken already.
            scheduler.lock_key = None
            logger.info("pgleader: beat started (term %d)", term.number)
            while may_act():
                # tick() returns how long nothing will be due.
                if ended.wait(max(0.0, scheduler.tick())):
                    break
                if scheduler.should_sync():
                    scheduler._do_sync()  # noqa: SLF001 - as celery.beat.Service does
        except TermOver:
            pass
        finally:
            if scheduler is not None:
                scheduler.close()
            logger.info("pgleader: beat stopped (term %d)", term.number)
