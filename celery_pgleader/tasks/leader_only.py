"""Which tasks are leader-only, and that their messages go to the leader queue."""

from __future__ import annotations

from typing import Any

from celery import Task

from celery_pgleader.config import election_of

STRATEGY = "celery_pgleader.tasks.strategy:leader_only"
REQUEST = "celery_pgleader.tasks.request:LeaderRequest"


def queue_name(election: str) -> str:
    """Return the name of an election's leader queue."""
    # No dot: where RabbitMQ lets a message wait, it comes to every queue whose name is the last words of this one's.
    return f"leader-{election}"


class LeaderOnlyTask(Task):  # type: ignore[type-arg]  # generic in the stubs, but not at run time
    """Base class of tasks that run on the leader only.

    The same as `@app.task(leader_only=True)`, and known as such also to programs that only send tasks and
    neither run a worker nor call `PgLeader(app)`.
    """

    abstract = True
    leader_only = True
    Strategy = STRATEGY
    Request = REQUEST
    # A run that dies with its worker is run again, by the next leader.
    acks_late = True
    reject_on_worker_lost = True

    @property
    def queue(self) -> str:
        """The leader queue of the app's election."""
        return queue_name(election_of(self.app))


def route_leader_only_tasks(app: Any, election: str) -> bool:
    """Send the app's tasks that are marked `leader_only=True` to the leader queue from now on.

    Returns:
        Whether it has any leader-only tasks, of either form.

    """
    tasks = [task for task in app.tasks.values() if getattr(task, "leader_only", False)]
    for task in tasks:
        if not isinstance(task, LeaderOnlyTask):
            task.queue = queue_name(election)
            task.Strategy = STRATEGY
            task.Request = REQUEST
            task.acks_late = task.reject_on_worker_lost = True
            # Celery keeps what it once read of the attributes.
            task._exec_options = None  # noqa: SLF001
    return bool(tasks)
