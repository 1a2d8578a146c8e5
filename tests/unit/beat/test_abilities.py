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


def test_abilities_list_entries_in_order_and_hash_the_schedule() -> None:
    """The hash does not depend on the order in which entries are written."""
    app = app_with(b={"task": "shop.known"}, a={"task": "shop.known", "schedule": crontab()})
    found = abilities(app)
    assert (found.entries, found.unfit) == (("a", "b"), None)
    assert found == abilities(app_with(a={"task": "shop.known", "schedule": crontab()}, b={"task": "shop.known"}))


@pytest.mark.parametrize("change", [{"schedule": 61.0}, {"task": "shop.other", "options": {"queue": "x"}}])
def test_another_schedule_has_another_hash(change: dict[str, Any]) -> None:
    """Another interval, another task or another queue."""
    assert (
        abilities(app_with(a={"task": "shop.known"})).schedule
        != abilities(app_with(a={"task": "shop.known", **change})).schedule
    )


def test_node_that_lacks_a_scheduled_task_is_unfit() -> None:
    """Its own worker would get the messages, and fail them."""
    app = app_with(a={"task": "shop.unknown"}, b={"task": "shop.known"})
    assert abilities(app).unfit == "its app has no task shop.unknown of a"


@pytest.mark.parametrize("way", ["options", "routes", "function"])
def test_task_sent_to_a_foreign_queue_need_not_be_known(way: str) -> None:
    """Other workers consume that queue."""
    options = {"queue": "elsewhere"} if way == "options" else {}
    app = app_with(a={"task": "other.task", "options": options})
    if way == "routes":
        app.conf.task_routes = {"other.*": {"queue": "elsewhere"}}
    if way == "function":
        app.conf.task_routes = (lambda name, args, kwargs, options, task=None, **_: args[0],)
    assert abilities(app).unfit is None


def test_process_that_consumes_no_queue_is_fit() -> None:
    """`celery beat` can send every task."""
    assert abilities_of(app_with(a={"task": "shop.unknown"}), Scheduler, ()).unfit is None


def test_schedule_kept_in_a_database_is_not_listed() -> None:
    """It is the same for all nodes."""

    class Elsewhere(Scheduler):
        """Has a database of its own."""

    found = abilities(app_with(a={"task": "shop.known"}), Elsewhere)
    assert (found.entries, found.schedule) == (None, None)


def test_entries_may_be_schedule_entry_objects() -> None:
    """Celery allows them in place of dicts."""
    app = app_with()
    app.conf.beat_schedule = {"a": ScheduleEntry("a", "shop.unknown", schedule=crontab(), app=app)}
    found = abilities(app)
    assert (found.entries, found.unfit) == (("a",), "its app has no task shop.unknown of a")
