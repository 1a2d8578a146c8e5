"""Adds the election to an app's workers."""

from __future__ import annotations

from typing import Any

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
        app.on_after_finalize.connect(self._on_finalized, weak=False)

    def _on_finalized(self, sender: Any, **_: Any) -> None:
        from celery_pgleader.config import election_of  # noqa: PLC0415 - psycopg only where it is used
        from celery_pgleader.tasks import route_leader_only_tasks  # noqa: PLC0415 - needs a finalized app

        route_leader_only_tasks(sender, election_of(sender))
