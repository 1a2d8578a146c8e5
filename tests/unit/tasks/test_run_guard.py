"""Guards of runs."""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_pgleader import current_leadership
from celery_pgleader.config import Config
from celery_pgleader.tasks.run_guard import RunGuard


def test_guard_is_told_the_end_of_its_own_tasks_only() -> None:
    """Of two workers in one process each has guards of its own."""
    told: list[str] = []

    class Guard(RunGuard):
        def before_start(self, task: Any, _task_id: str) -> None:
            told.append(f"{task.app.main} began")

        def after_run(self, task: Any, state: str | None) -> None:
            told.append(f"{task.app.main} ended: {state}")

    for name in ("first", "second"):
        app = Celery(name, broker="memory://", set_as_current=False)
        register: Any = app.task
        task = register(current_leadership, name="work", shared=False, lazy=False)
        Guard(Config(database_url="dbname=none"), "a@b").install(app)
        task.apply()
    assert told == ["first began", "first ended: SUCCESS", "second began", "second ended: SUCCESS"]
