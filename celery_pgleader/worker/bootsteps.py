"""The steps that `celery worker` takes with `--pgleader`.

The election belongs to the worker's blueprint, which outlives the connection to the broker; the leader queue belongs to
the consumer's, which is torn down and built again at every reconnect.
"""

from __future__ import annotations

import os
from typing import Any

from celery import bootsteps
from celery.signals import worker_shutting_down
from celery.utils.log import get_logger

from celery_pgleader.errors import ConfigurationError
from celery_pgleader.worker.refusal import Refused

logger = get_logger(__name__)

OPTION_PREFIX = "pgleader_"


class ElectionStep(bootsteps.StartStopStep):
    """Takes part in the election."""

    label = "PgLeader"
    conditional = True
    # After the first fork, so that pool children inherit neither threads nor sockets.
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, *, pgleader: bool | None = None, beat: bool = False, **options: Any) -> None:
        """Check the configuration, so that a worker that cannot take part does not start."""
        worker.pgleader = None
        self.enabled = getattr(worker.app, "pgleader", None) is not None if pgleader is None else pgleader
        if self.enabled:
            self._config = self._read_config(worker, beat=beat, options=options)
            self._check_schedule(worker)
            # Pool children and LeaderOnlyTask must know of an election that was named on the command line.
            os.environ["PGLEADER_ELECTION"] = self._config.election
            self._guard(worker, self._config)
        else:
            self._assist(worker)
        super().__init__(worker, **options)

    def create(self, worker: Any) -> Any:
        """Put the worker's part in the election together."""
        from celery_pgleader.worker.participant import Participant  # noqa: PLC0415 - psycopg only where it is used

        worker.pgleader = Participant(worker, self._config)
        worker_shutting_down.connect(self._on_shutting_down, sender=worker.hostname)
        return worker.pgleader

    def start(self, worker: Any) -> None:
        """Begin to stand."""
        worker.pgleader.start()

    def close(self, worker: Any) -> None:
        """Stand no more."""
        try:
            worker.pgleader.wind_down()
            worker.pgleader.drain()
        except Exception:
            # Celery's shutdown would end here.
            logger.exception("pgleader: could not wind down")

    def stop(self, worker: Any) -> None:
        """Leave not yet: the pool's tasks still run, and those that are leader-only need the lock."""
        from celery_pgleader.tasks.leader_queue import return_unread  # noqa: PLC0415 - psycopg only where it is used

        return_unread(worker.consumer)

    def terminate(self, worker: Any) -> None:
        """Leave at once: the pool's tasks are gone."""
        worker.pgleader.leave()

    def info(self, worker: Any) -> dict[str, Any]:  # type: ignore[override]  # the stubs err
        """Return this worker's part of `celery inspect stats`."""
        return {"pgleader": worker.pgleader.info()} if worker.pgleader is not None else {}

    def _on_shutting_down(self, **_: Any) -> None:
        # Runs in a signal handler, before anything else of the shutdown.
        if self.obj is not None:
            self.obj.wind_down()

    def _assist(self, worker: Any) -> None:
        """Have a worker without `--pgleader` treat the tasks of those with it as they would."""
        app = worker.app
        if any(getattr(task, "leader_only", False) for task in app.tasks.values()):
            from celery_pgleader.config import election_of  # noqa: PLC0415 - psycopg only where it is used
            from celery_pgleader.tasks import route_leader_only_tasks  # noqa: PLC0415

            route_leader_only_tasks(app, election_of(app))
        if app.conf.get("pgleader_schedule") or app.conf.get("pgleader_channels"):
            try:
                self._guard(worker, self._read_config(worker, beat=False, options={}))
            except Refused as error:
                # It takes no part, so it need not be able to.
                logger.warning("pgleader: this worker cannot tell what runs or ran elsewhere: %s", error.message)

    def _guard(self, worker: Any, config: Any) -> None:
        from celery_pgleader.tasks.run_guard import RunGuard  # noqa: PLC0415 - psycopg only where it is used

        RunGuard(config, worker.hostname).install(worker.app)
        # For processes that are spawned, which begin with what the configuration has them import.
        worker.app.conf.include = (*worker.app.conf.include, "celery_pgleader.tasks.spawned")

    def _check_schedule(self, worker: Any) -> None:
        from celery_pgleader.beat.entries import check_entries  # noqa: PLC0415 - psycopg only where it is used
        from celery_pgleader.beat.leader_beat import scheduler_class  # noqa: PLC0415

        try:
            check_entries(worker.app.conf.beat_schedule, scheduler_class(worker.scheduler))
        except ConfigurationError as error:
            raise Refused(str(error)) from error

    def _read_config(self, worker: Any, *, beat: bool, options: dict[str, Any]) -> Any:
        from celery_pgleader.config import Config  # noqa: PLC0415 - psycopg only where it is used

        if beat:
            raise Refused("--pgleader takes the place of -B (--beat): the leader runs the schedule; drop -B")
        given = {k.removeprefix(OPTION_PREFIX): v for k, v in options.items() if k.startswith(OPTION_PREFIX)}
        try:
            return Config.from_app(worker.app, given)
        except ConfigurationError as error:
            raise Refused(str(error)) from error


class LeaderQueueStep(bootsteps.StartStopStep):
    """Has the leader queue consumed while this worker leads."""

    label = "PgLeaderQueue"
    conditional = True
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Nothing to prepare."""
        super().__init__(consumer, **options)

    def include_if(self, consumer: Any) -> bool:
        """Tell whether the worker takes part in the election."""
        return getattr(consumer.controller, "pgleader", None) is not None

    def start(self, consumer: Any) -> None:
        """Follow the leadership with a new connection to the broker."""
        consumer.controller.pgleader.attach(consumer)

    def stop(self, consumer: Any) -> None:
        """Let go of a connection."""
        consumer.controller.pgleader.detach()

    def shutdown(self, consumer: Any) -> None:
        """Leave the election: of all hooks, this alone is called last in every pool and for every signal."""
        consumer.controller.pgleader.stop()
