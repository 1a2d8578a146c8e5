"""Adds the election to an app's workers."""

from __future__ import annotations

from typing import Any

from celery_pgleader.worker import remote  # noqa: F401 - has workers know of its commands
from celery_pgleader.worker.bootsteps import ElectionStep, LeaderQueueStep


def add_steps(app: Any) -> None:
    """Have an app's workers know the steps; whether they are taken depends on the worker's options."""
    app.steps["worker"].add(ElectionStep)
    app.steps["consumer"].add(LeaderQueueStep)


class PgLeader:
    """Has every worker of an app take part in the election, also one that a program starts by itself.

    The same as `--pgleader` on the command line, where `--no-pgleader` overrules it. With it, tasks marked
    `leader_only=True` go to the leader queue also from programs that only send them.

        app = Celery("shop")
        PgLeader(app)
    """

    def __init__(self, app: Any) -> None:
        """Install on an app; doing it twice does no harm."""
        self.app = app
        app.pgleader = self
        add_steps(app)
        # By the setting, and not by what the tasks say: those of a program that only sends may never be looked at.
        if app.configured:
            self._add_route(app.conf)
        else:
            app.on_after_configure.connect(self._on_configured, weak=False)

    def route(
        self, name: str, _args: object, _kwargs: object, _options: object, task: Any = None, **_: object
    ) -> dict[str, str] | None:
        """Return where a task's message is to go, as functions in `task_routes` do."""
        from celery_pgleader.config import election_of  # noqa: PLC0415 - psycopg only where it is used
        from celery_pgleader.tasks import queue_name  # noqa: PLC0415

        known = self.app.tasks.get(name) if task is None else task
        return {"queue": queue_name(election_of(self.app))} if getattr(known, "leader_only", False) else None

    def _on_configured(self, source: Any, **_: Any) -> None:
        self._add_route(source)

    def _add_route(self, conf: Any) -> None:
        others = conf.task_routes
        conf.task_routes = [self.route, *(others if isinstance(others, list | tuple) else [others] if others else [])]
