"""What of its schedule a node can run."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.beat import PersistentScheduler, ScheduleEntry, Scheduler
from celery.schedules import crontab

from celery_pgleader.beat.abilities import abilities_of


def app_with(**entries: Any) -> Celery:
    """Return an app with a schedule, and one task."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {name: {"schedule": 60.0, **entry} for name, entry in entries.items()}

    @app.task(name="shop.known", shared=False)
    def known() -> None: ...

    return app


def abilities(app: Celery, scheduler: Any = PersistentScheduler) -> Any:
    """Return what a worker can run that consumes the default queue."""
    return abilities_of(app, scheduler, {"celery"})


def test_a_sound_app() -> None:
    """Its entries are told by name, and a hash of what they are."""
    app = app_with(b={"task": "shop.known"}, a={"task": "shop.known", "schedule": crontab()})
    found = abilities(app)
    assert (found.entries, found.unfit) == (("a", "b"), None)
    assert found == abilities(app_with(a={"task": "shop.known", "schedule": crontab()}, b={"task": "shop.known"}))


@pytest.mark.parametrize("change", [{"schedule": 61.0}, {"task": "shop.other", "options": {"queue": "x"}}])
def test_the_hash_tells_schedules_apart(change: dict[str, Any]) -> None:
    """By what runs, and when."""
    assert (
        abilities(app_with(a={"task": "shop.known"})).schedule
        != abilities(app_with(a={"task": "shop.known", **change})).schedule
    )


def test_a_task_that_is_missing() -> None:
    """If its messages come to this worker, which would fail it."""
    app = app_with(a={"task": "shop.unknown"}, b={"task": "shop.known"})
    assert abilities(app).unfit == "its app has no task shop.unknown of a"


@pytest.mark.parametrize("way", ["options", "routes", "function"])
def test_a_task_of_another_app(way: str) -> None:
    """Its messages go to a queue that others consume, so this worker may send it."""
    options = {"queue": "elsewhere"} if way == "options" else {}
    app = app_with(a={"task": "other.task", "options": options})
    if way == "routes":
        app.conf.task_routes = {"other.*": {"queue": "elsewhere"}}
    if way == "function":
        app.conf.task_routes = (lambda name, args, kwargs, options, task=None, **_: args[0],)
    assert abilities(app).unfit is None


def test_a_beat_process_consumes_nothing() -> None:
    """So it can send everything."""
    assert abilities_of(app_with(a={"task": "shop.unknown"}), Scheduler, ()).unfit is None


def test_schedules_that_are_kept_elsewhere_are_not_told() -> None:
    """They are the same for all nodes."""

    class Elsewhere(Scheduler):
        """Has a database of its own."""

    found = abilities(app_with(a={"task": "shop.known"}), Elsewhere)
    assert (found.entries, found.schedule) == (None, None)


def test_entries_may_be_objects() -> None:
    """As Celery allows."""
    app = app_with()
    app.conf.beat_schedule = {"a": ScheduleEntry("a", "shop.unknown", schedule=crontab(), app=app)}
    found = abilities(app)
    assert (found.entries, found.unfit) == (("a",), "its app has no task shop.unknown of a")
