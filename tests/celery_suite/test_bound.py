"""What the cases in `replaced.py` say of more than what is replaced holds for bound schedulers too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.beat import Scheduler
from celery.schedules import schedule

from celery_pgleader.beat import scheduler as beat_scheduler
from tests.celery_suite.stand_ins import Clock, make_bound

NOON = datetime(2026, 1, 15, 12, tzinfo=timezone.utc)


class Recording(Scheduler):
    """Sends nowhere."""

    sent: list[tuple[Any, ...]]

    def send_task(self, *args: Any, **options: Any) -> None:
        if args[0] == "broken":
            raise RuntimeError("no such queue")
        self.sent.append((*args, options))


class Broken(schedule):
    """A schedule that fails."""

    def is_due(self, last_run_at: datetime) -> Any:
        raise RuntimeError("cannot calculate the next run")


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.now = lambda: NOON  # type: ignore[method-assign]
    return app


@pytest.fixture
def scheduler(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = Clock()
    monkeypatch.setattr(beat_scheduler, "time", clock)
    made = make_bound(Recording, app, clock)
    made.__init__(app=app)
    made.sent = []
    return made


@pytest.fixture
def add_due(scheduler: Any) -> Callable[..., Any]:
    def add(name: str, **options: Any) -> Any:
        return scheduler.add(
            name=name, **{"task": name, "schedule": 60, "last_run_at": NOON - timedelta(days=1), **options}
        )

    return add


def test_task_of_the_app_is_sent_by_its_own_apply_async(
    app: Celery, scheduler: Any, add_due: Callable[..., Any]
) -> None:
    @app.task(shared=False)
    def report() -> None: ...

    report.apply_async = Mock()  # type: ignore[method-assign]
    add_due("report", task=report.name)
    scheduler.tick()
    report.apply_async.assert_called_once()


@pytest.mark.parametrize(("args", "sent"), [(None, []), ((101,), [101])])
def test_entry_is_sent_with_its_arguments(
    scheduler: Any, add_due: Callable[..., Any], args: Any, sent: list[Any]
) -> None:
    entry = add_due("report")
    entry.args, entry.kwargs = args, None
    scheduler.tick()
    ((name, *arguments, _),) = scheduler.sent
    assert (name, arguments) == ("report", [sent, {}])


def test_headers_and_options_are_kept(scheduler: Any, add_due: Callable[..., Any]) -> None:
    add_due("report", options={"queue": "slow", "headers": {"existing": "value"}})
    scheduler.tick()
    (*_, options) = scheduler.sent[0]
    assert options["queue"] == "slow"
    assert options["headers"]["existing"] == "value"


@pytest.mark.parametrize("broken", [{}, {"task": "other", "schedule": Broken(60)}], ids=["sending", "schedule"])
def test_failing_entry_stops_no_other(
    scheduler: Any, add_due: Callable[..., Any], caplog: pytest.LogCaptureFixture, broken: dict[str, Any]
) -> None:
    add_due("broken", **broken)
    add_due("healthy")
    scheduler.tick()
    assert [name for name, *_ in scheduler.sent] == ["healthy"]
    # Celery's own logger may have told of it, too.
    (record,) = [r for r in caplog.records if r.levelname == "ERROR" and r.name.startswith("celery_pgleader")]
    assert "broken" in record.getMessage()


def test_changed_interval_is_seen_by_the_next_tick(scheduler: Any) -> None:
    for seconds in 5, 10, 3:
        scheduler.add(name="report", task="report", schedule=seconds)
        assert scheduler.tick() == seconds


def test_sent_entry_is_due_again_after_its_interval(scheduler: Any, add_due: Callable[..., Any]) -> None:
    add_due("report")
    assert scheduler.tick() == 60
    assert scheduler.tick() == 60
    assert len(scheduler.sent) == scheduler.schedule["report"].total_run_count == 1


def test_sync_is_due_after_so_many_messages(app: Celery, scheduler: Any, add_due: Callable[..., Any]) -> None:
    scheduler.sync_every_tasks = 2
    scheduler.sync = Mock()
    scheduler._do_sync()  # noqa: SLF001 - as celery.beat.Service does
    add_due("first")
    scheduler.tick()
    assert not scheduler.should_sync()
    add_due("second")
    scheduler.tick()
    assert scheduler.should_sync()
    scheduler.sync.assert_called_once_with()
