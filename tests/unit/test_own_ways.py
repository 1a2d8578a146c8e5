"""Schedulers, schedules and programs that go ways of their own are followed, and stop nobody else."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import Scheduler
from celery.schedules import BaseSchedule, crontab, schedule

from celery_pgleader.beat.scheduler import bind
from celery_pgleader.beat.slot_keeper import SlotKeeper
from celery_pgleader.beat.slots import as_told, next_slot
from tests.celery_suite.stand_ins import CONFIG, TERM, MemoryLedger, PromptPublisher

UTC = timezone.utc
NEW_YORK = ZoneInfo("America/New_York")


class Recording(Scheduler):
    """Sends nowhere."""

    sent: list[Any]

    def send_task(self, *args: Any, **_: Any) -> None:
        self.sent.append(args[0])


class OnlyIsDue(BaseSchedule):
    """Can say no more than whether it is due."""

    def is_due(self, last_run_at: datetime) -> Any:
        return True, 60.0


@pytest.fixture
def app() -> Celery:
    app = Celery("x", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(timezone="America/New_York", beat_schedule={})
    return app


def bound(app: Celery, cls: type[Scheduler] = Recording, now: datetime | None = None) -> Any:
    """Return a scheduler that is bound to a term."""
    scheduler: Any = None

    def send(entry: Any, producer: Any) -> None:
        scheduler.send(entry, producer)

    publisher: Any = PromptPublisher(app, send, lambda: True, lambda outcome: keeper.settle([outcome]))
    ledger: Any = MemoryLedger()
    keeper = SlotKeeper(CONFIG, TERM, ledger, publisher, lambda: now or datetime.now(UTC))
    scheduler = bind(cls, keeper, lambda: True)(app=app, lazy=True)
    scheduler.sent = []
    return scheduler


@pytest.mark.parametrize(
    "kind", [crontab(minute=0, hour=0), schedule(timedelta(days=1), relative=True)], ids=["crontab", "relative"]
)
def test_what_celery_is_asked_after_a_tick_follows_the_time_zone(app: Celery, kind: Any) -> None:
    """Celery before 5.7 takes what it is told for the zone's own."""
    now = datetime(2026, 1, 8, 0, 0, 1, tzinfo=NEW_YORK)
    app.now = lambda: now  # type: ignore[method-assign]
    scheduler = bound(app, now=now.astimezone(UTC))
    scheduler.add(name="daily", task="t", schedule=kind, last_run_at=now - timedelta(days=1))
    scheduler.tick()
    assert scheduler.sent == ["t"]
    _, seconds = scheduler.schedule["daily"].is_due()
    assert seconds == pytest.approx(86_399, abs=2)


def test_a_schedule_that_cannot_be_calculated_does_not_stop_the_others(app: Celery) -> None:
    """It is due when it says so."""
    scheduler = bound(app)
    scheduler.add(name="custom", task="custom", schedule=OnlyIsDue())
    long_ago = datetime.now(UTC) - timedelta(seconds=11)
    scheduler.add(name="healthy", task="healthy", schedule=timedelta(seconds=10), last_run_at=long_ago)
    scheduler.tick()
    assert sorted(scheduler.sent) == ["custom", "healthy"]


class NothingButIsDue(schedule):
    """Lacks even what Celery's own repr shows."""

    def __init__(self) -> None:
        BaseSchedule.__init__(self)

    def is_due(self, last_run_at: datetime) -> Any:
        return True, 60.0


def test_a_schedule_without_words(app: Celery) -> None:
    """Celery cannot show it, and it runs all the same."""
    scheduler = bound(app)
    scheduler.add(name="custom", task="custom", schedule=NothingButIsDue())
    scheduler.tick()
    assert scheduler.sent == ["custom"]


@pytest.mark.parametrize("plan", [crontab(), crontab("*/20"), crontab(30)])
def test_the_hour_that_is_shown_twice(app: Celery, plan: Any) -> None:
    """Counted from its second time, a crontab has a next slot; Celery itself would send it again and again."""
    app.conf.update(timezone="Europe/Berlin")
    plan.app = app
    now = datetime(2026, 10, 25, 1, 5, tzinfo=UTC)
    slot = next_slot(plan, now)
    assert slot is not None
    assert slot > now
    told = as_told(plan, now)
    assert (told.fold, told.astimezone(UTC)) == (0, datetime(2026, 10, 25, 1, tzinfo=UTC) - timedelta(microseconds=1))


def test_apply_entry_is_passed_through(app: Celery) -> None:
    """Monitoring hooks into it."""

    class Monitored(Recording):
        seen = ""

        def apply_entry(self, entry: Any, producer: Any = None) -> None:
            self.seen = entry.name
            super().apply_entry(entry, producer)

    scheduler = bound(app, Monitored)
    long_ago = datetime.now(UTC) - timedelta(seconds=11)
    scheduler.add(name="seen", task="t", schedule=timedelta(seconds=10), last_run_at=long_ago)
    scheduler.tick()
    assert (scheduler.sent, scheduler.seen) == (["t"], "seen")


@pytest.mark.parametrize("every", [60, None])
def test_what_is_sent_without_being_reserved(app: Celery, every: float | None) -> None:
    """A scheduler of one's own may have its reasons; it gets a slot for the present."""
    scheduler = bound(app)
    scheduler.apply_async(scheduler.Entry(name="now", task="now", schedule=every, app=app), advance=False)
    assert scheduler.sent == ["now"]


def test_what_expired_was_not_run(app: Celery) -> None:
    """Nothing is reserved of it, so that its run count stays."""
    scheduler = bound(app)
    long_ago = datetime.now(UTC) - timedelta(seconds=11)
    scheduler.add(name="late", task="t", schedule=timedelta(seconds=10), last_run_at=long_ago)
    scheduler.keeper.claim = lambda entries, **_: {entry.name: [] for entry in entries}
    scheduler.tick()
    assert scheduler.schedule["late"].total_run_count == 0


def test_what_is_hidden_for_hours_is_not_retired(app: Celery) -> None:
    """django-celery-beat shows a crontab around its time only; what it knows of is in the schedule all the same."""
    names = ["shown", "hidden"]
    enabled = SimpleNamespace(values_list=lambda *_, **__: names)

    class Hiding(Recording):
        enabled_models_qs = None
        Model = SimpleNamespace(objects=SimpleNamespace(enabled=lambda: enabled))

    scheduler = bound(app, Hiding)
    for name in ("shown", "hidden", "removed"):
        scheduler.add(name=name, task=name, schedule=60)
    scheduler.tick()
    del scheduler.schedule["hidden"], scheduler.schedule["removed"]
    scheduler.tick()
    records = scheduler.keeper._records  # noqa: SLF001 - what it remembers is told by nothing else
    assert {name for name, record in records.items() if record.retired} == {"removed"}
