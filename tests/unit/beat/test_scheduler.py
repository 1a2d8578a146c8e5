"""Schedulers that are bound to a term, also those that go ways of their own."""

from __future__ import annotations

import logging
import shelve
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from celery import Celery
from celery.beat import PersistentScheduler, Scheduler
from celery.schedules import BaseSchedule, crontab, schedule

from celery_pgleader.beat import scheduler as module
from celery_pgleader.beat.scheduler import BATCH, REFUSED_PAUSE, bind
from celery_pgleader.beat.slot_keeper import LedgerAway, SlotKeeper, TermOver
from celery_pgleader.config import Config
from celery_pgleader.election import Term
from tests.support.memory import MemoryLedger, Outbox

UTC = timezone.utc
TERM = Term(7, "shop", "a", 11)
NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


class Desk:
    """A bound scheduler over a ledger in memory, with a clock that a test sets."""

    def __init__(self, base: type[Scheduler] = Scheduler, **policies: Any) -> None:
        """Begin at noon, with an empty schedule."""
        self.now, self.uptime = NOON, 0.0
        self.may = True
        app: Any = Celery("shop", set_as_current=False)
        app.now = lambda: self.now
        self.app = app
        self.ledger, self.outbox = MemoryLedger(), Outbox()
        config = Config(database_url="host=nowhere", election="shop", schedule=policies)
        self.keeper = SlotKeeper(config, TERM, self.ledger, self.outbox, lambda: self.now)
        self.keeper.recover(dict[str, Any]().get)
        self.scheduler: Any = bind(base, self.keeper, lambda: self.may)(app=self.app)
        self.scheduler.schedule.clear()

    def time(self) -> float:
        """Return what the wall clock says."""
        return self.now.timestamp()

    def monotonic(self) -> float:
        """Return for how long the host has been up."""
        return self.uptime

    def pass_time(self, period: timedelta) -> None:
        """Let time pass for both clocks."""
        self.now += period
        self.uptime += period.total_seconds()

    def add(self, name: str, every: Any = MINUTE, **fields: Any) -> Any:
        """Put an entry into the schedule."""
        return self.scheduler.add(name=name, task=f"shop.{name}", schedule=every, **fields)

    def tick(self) -> float:
        """Tick once."""
        seconds: float = self.scheduler.tick()
        return seconds

    @property
    def sent(self) -> list[str]:
        """The names of the entries that were published, in order."""
        return [name for name, _ in self.outbox.slots]


@pytest.fixture
def desk_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Desk]:
    """Make a desk whose clock is the scheduler's."""

    def make(*args: Any, **policies: Any) -> Desk:
        desk = Desk(*args, **policies)
        monkeypatch.setattr(module, "time", desk)
        return desk

    return make


@pytest.fixture
def desk(desk_of: Callable[..., Desk]) -> Desk:
    """Give a desk."""
    return desk_of()


# The tick


def test_entries_due_together_are_claimed_in_one_statement(desk: Desk) -> None:
    """Entries that are not due are left alone."""
    for number in range(50):
        desk.add(f"due{number:02}")
    desk.add("later", HOUR)
    assert desk.tick() == 60
    assert desk.ledger.calls.count("claim") == 0
    desk.pass_time(MINUTE)
    assert desk.tick() == 60
    assert desk.ledger.calls.count("claim") == 1
    assert sorted(desk.outbox.slots) == [(f"due{number:02}", NOON + MINUTE) for number in range(50)]
    assert desk.ledger.calls.count("register") == 1, "all of them were met at once"


def test_many_due_entries_are_claimed_in_batches(desk: Desk) -> None:
    """The next batch is for the very next tick; no entry is in two."""
    for number in range(2 * BATCH + 1):
        desk.add(f"due{number}")
    desk.tick()
    desk.pass_time(MINUTE)
    waits = [desk.tick() for _ in range(3)]
    assert waits == [0, 0, 60]
    assert desk.ledger.calls.count("claim") == 3
    assert len(set(desk.sent)) == len(desk.sent) == 2 * BATCH + 1


def test_tick_returns_the_seconds_until_an_entry_is_due(desk: Desk) -> None:
    """At most the scheduler's own longest interval."""
    desk.scheduler.max_interval = 300
    assert desk.tick() == 300
    desk.add("tick", HOUR)
    assert desk.tick() == 300
    desk.add("tock", 90 * SECOND)
    assert desk.tick() == 90
    desk.pass_time(60 * SECOND)
    assert desk.tick() == 30
    desk.pass_time(60 * SECOND)
    assert desk.tick() == 60, "counted from the slot, not from when it was seen"
    assert desk.outbox.slots == [("tock", NOON + 90 * SECOND)]


def test_late_ticks_do_not_shift_later_slots(desk: Desk) -> None:
    """Slots stay multiples of the interval."""
    desk.add("tick", 10 * SECOND)
    for late in (0, 3, 9, 1, 0, 25):
        desk.pass_time(timedelta(seconds=desk.tick() + late))
    desk.tick()
    assert [(slot - NOON).total_seconds() for _, slot in desk.outbox.slots] == [10, 20, 30, 40, 50, 80]
    assert desk.scheduler.schedule["tick"].total_run_count == 6


def test_clock_set_back_repeats_no_slot(desk: Desk) -> None:
    """The entry continues once the clock has passed its last slot."""
    desk.add("tick", 10 * SECOND)
    desk.tick()
    for _ in range(3):
        desk.pass_time(10 * SECOND)
        desk.tick()
    desk.now -= 25 * SECOND
    for _ in range(5):
        desk.pass_time(SECOND)
        assert desk.tick() > 0
    assert len(desk.sent) == 3
    for _ in range(40):
        desk.pass_time(SECOND)
        desk.tick()
    assert [(slot - NOON).total_seconds() for _, slot in desk.outbox.slots] == [10, 20, 30, 40, 50]


def test_clock_set_forward_is_seen_by_the_next_tick(desk: Desk) -> None:
    """As when a host wakes up."""
    desk.add("tick", HOUR)
    desk.tick()
    desk.now += HOUR
    desk.tick()
    assert desk.outbox.slots == [("tick", NOON + HOUR)]


class Asked(schedule):
    """Says when to be asked again, and counts how often it was."""

    times = 0

    def is_due(self, last_run_at: datetime) -> Any:
        """Not be due."""
        self.times += 1
        return False, 60.0


def test_every_entry_is_asked_again_after_a_clock_change(desk: Desk) -> None:
    """The time of the next question is kept by the wall clock, which may be an hour behind what it was."""
    asked = Asked(HOUR, app=desk.app)
    desk.add("asked", asked)
    assert desk.tick() == 60
    assert (desk.tick(), asked.times) == (60, 1)
    desk.now -= HOUR
    assert (desk.tick(), asked.times) == (60, 2)
    desk.pass_time(MINUTE)
    assert (desk.tick(), asked.times) == (60, 3)


class Broken(schedule):
    """Cannot calculate when it is due."""

    def is_due(self, last_run_at: datetime) -> Any:
        """Fail."""
        raise ZeroDivisionError


def test_entry_whose_schedule_fails_stops_no_other(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """It is asked again later, and logged only once until then."""
    desk.scheduler.max_interval = 300
    for name in "abc":
        desk.add(name, Broken(MINUTE, app=desk.app) if name == "b" else MINUTE)
    for _ in range(5):
        desk.tick()
        desk.pass_time(MINUTE)
    assert sorted(desk.sent) == ["a"] * 4 + ["c"] * 4
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "pgleader: cannot calculate the next run of b"
    ]
    desk.scheduler.schedule["b"].schedule = schedule(MINUTE, app=desk.app)
    desk.tick()
    assert "b" in desk.sent


class OnlyIsDue(BaseSchedule):
    """Can say no more than whether it is due."""

    def is_due(self, last_run_at: datetime) -> Any:
        """Be due."""
        return True, 60.0


class WithoutRepr(OnlyIsDue, schedule):
    """Lacks even what Celery's own repr shows."""

    def __init__(self) -> None:
        """Have no interval."""
        BaseSchedule.__init__(self)


@pytest.mark.parametrize("plan", [OnlyIsDue(), WithoutRepr()], ids=["estimate", "repr"])
def test_schedule_without_an_estimate_runs_when_it_says_so(desk: Desk, plan: Any) -> None:
    """It has `is_due` and nothing else, and stops no other entry; without a repr Celery itself cannot show it."""
    desk.add("custom", plan)
    desk.add("healthy", 10 * SECOND, last_run_at=NOON - 10 * SECOND)
    desk.pass_time(SECOND)
    desk.tick()
    assert sorted(desk.sent) == ["custom", "healthy"]


@pytest.mark.parametrize(
    "plan", [crontab(minute=0, hour=0), schedule(timedelta(days=1), relative=True)], ids=["crontab", "relative"]
)
def test_time_until_the_next_run_follows_the_app_zone(desk: Desk, plan: Any) -> None:
    """Celery before 5.7 takes what it is told for the zone's own."""
    desk.app.conf.update(timezone="America/New_York")
    desk.now = datetime(2026, 1, 8, 0, 0, 1, tzinfo=ZoneInfo("America/New_York"))
    desk.add("daily", plan, last_run_at=desk.now - timedelta(days=1))
    desk.tick()
    assert desk.sent == ["daily"]
    _, seconds = desk.scheduler.schedule["daily"].is_due()
    assert seconds == pytest.approx(86_399, abs=2)


def test_expired_slot_does_not_count_as_a_run(desk_of: Callable[..., Desk]) -> None:
    """Nothing is reserved of it."""
    desk = desk_of(late={"misfire_grace": 0.5})
    desk.add("late", 10 * SECOND, last_run_at=NOON - 11 * SECOND)
    desk.tick()
    assert [(row.state, row.slot) for row in desk.ledger.rows] == [("expired", NOON - SECOND)]
    assert desk.scheduler.schedule["late"].total_run_count == 0


def test_entries_made_anew_neither_repeat_nor_restart(desk: Desk) -> None:
    """Schedulers with a database make all entries anew when one of them changes."""
    desk.add("tick", 10 * SECOND)
    desk.tick()
    desk.pass_time(13 * SECOND)
    desk.tick()
    desk.scheduler.data = {}
    tick = desk.add("tick", 10 * SECOND)
    assert tick.last_run_at == NOON + 13 * SECOND
    assert desk.tick() == 7
    desk.pass_time(7 * SECOND)
    desk.tick()
    assert [(slot - NOON).total_seconds() for _, slot in desk.outbox.slots] == [10, 20]
    assert desk.ledger.calls.count("register") == 1


def test_added_and_removed_entries_are_seen_by_the_next_tick(desk: Desk) -> None:
    """A removed entry is retired."""
    desk.add("tick")
    desk.tick()
    del desk.scheduler.schedule["tick"]
    desk.add("tock")
    desk.pass_time(MINUTE)
    desk.tick()
    assert desk.sent == ["tock"] * (desk.ledger.records["tock"].since < NOON + MINUTE)
    assert desk.ledger.records["tick"].retired
    desk.pass_time(MINUTE)
    desk.tick()
    assert set(desk.sent) == {"tock"}
    desk.scheduler.schedule.clear()
    desk.tick()
    assert desk.ledger.records["tock"].retired


def test_changed_interval_is_seen_by_the_next_tick(desk: Desk) -> None:
    """The slots before the change are not made up for."""
    desk.add("tick", HOUR)
    desk.tick()
    desk.pass_time(MINUTE)
    desk.add("tick", MINUTE)
    desk.tick()
    assert desk.outbox.slots == [("tick", NOON + MINUTE)]


def test_slot_claimed_by_another_leader_is_not_sent(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """The entry is asked for again after a pause, and continues after the other leader's slot."""
    desk.add("tick", 10 * SECOND)
    desk.add("tock", 10 * SECOND)
    desk.tick()
    desk.ledger.records["tick"] = replace(desk.ledger.records["tick"], last_slot=NOON + 30 * SECOND)
    desk.pass_time(10 * SECOND)
    assert desk.tick() == REFUSED_PAUSE
    assert desk.sent == ["tock"]
    assert "accounted for already: tick" in caplog.text
    for _ in range(31):
        desk.pass_time(SECOND)
        desk.tick()
    assert [slot for name, slot in desk.outbox.slots if name == "tick"] == [NOON + 40 * SECOND]
    assert desk.scheduler.schedule["tick"].total_run_count == 1


def test_entry_that_waits_for_its_run_holds_up_no_other(desk_of: Callable[..., Desk]) -> None:
    """With `overlap` set to `wait` it is asked for again after a pause."""
    desk = desk_of(tick={"overlap": "wait"})
    desk.add("tick", 10 * SECOND)
    desk.add("tock", 10 * SECOND)
    desk.tick()
    desk.ledger.goes_on = {"tick"}
    desk.pass_time(10 * SECOND)
    assert desk.tick() == REFUSED_PAUSE
    assert desk.sent == ["tock"]
    desk.pass_time(SECOND)
    assert desk.tick() == REFUSED_PAUSE
    desk.ledger.goes_on = set()
    desk.pass_time(SECOND)
    assert desk.tick() == 8
    assert desk.outbox.slots == [("tock", NOON + 10 * SECOND), ("tick", NOON + 10 * SECOND)]


def test_scheduler_of_an_ended_term_claims_and_sends_nothing(desk: Desk) -> None:
    """No scheduler can swallow `TermOver`, which is no `Exception`."""
    desk.add("tick")
    desk.tick()
    desk.pass_time(MINUTE)
    desk.may = False
    calls = len(desk.ledger.calls)
    for act in (
        desk.scheduler.tick,
        lambda: desk.scheduler.reserve(desk.scheduler.schedule["tick"]),
        lambda: desk.scheduler.apply_async(desk.scheduler.schedule["tick"]),
    ):
        with pytest.raises(TermOver):
            act()
    assert len(desk.ledger.calls) == calls
    assert desk.scheduler.schedule["tick"].total_run_count == 0
    assert not desk.sent
    assert not issubclass(TermOver, Exception)


def test_slots_claimed_as_the_term_ends_stay_claimed(desk: Desk) -> None:
    """The next leader publishes them."""
    for name in "abc":
        desk.add(name)
    desk.tick()
    desk.pass_time(MINUTE)
    answers = iter([True, True])
    desk.scheduler.may_act = lambda: next(answers, False)
    with pytest.raises(TermOver):
        desk.tick()
    assert len(desk.sent) == 1
    assert len(desk.ledger.claimed()) == 3


@pytest.mark.parametrize("done", [True, False])
def test_ledger_that_fails_during_a_claim_costs_no_slot(desk: Desk, *, done: bool) -> None:
    """Each slot is published once, whether or not the claim was written before the connection broke."""
    for name in "ab":
        desk.add(name)
    desk.tick()
    desk.pass_time(MINUTE)
    claim = desk.ledger.claim

    def break_down(rows: Any, records: Any = None) -> Any:
        if done:
            claim(rows, records)
        raise psycopg.OperationalError("gone")

    desk.ledger.claim = break_down  # type: ignore[method-assign]
    with pytest.raises(LedgerAway):
        desk.tick()
    desk.ledger.claim = claim  # type: ignore[method-assign]
    desk.keeper.recover(desk.scheduler.find)
    desk.scheduler.forget()
    desk.tick()
    assert sorted(desk.outbox.slots) == [("a", NOON + MINUTE), ("b", NOON + MINUTE)]
    desk.pass_time(MINUTE)
    desk.tick()
    assert len(desk.sent) == 4


# Schedulers with a tick of their own


class OwnTick(Scheduler):
    """Ticks as Celery does."""

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """Tick."""
        return super().tick(*args, **kwargs)


def test_scheduler_with_its_own_tick_keeps_it(desk_of: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entries are claimed one by one, on the same grid."""
    desk = desk_of(OwnTick)
    assert type(desk.scheduler).__name__ == "TermOwnTick"
    assert type(desk.scheduler).tick is OwnTick.tick
    assert issubclass(type(desk_of().scheduler), module.Ticking)
    for name in "ab":
        desk.add(name, 10 * SECOND)
    for _ in range(25):
        for _ in range(4):
            desk.tick()
        desk.pass_time(SECOND)
    assert sorted(desk.outbox.slots) == [(name, NOON + n * SECOND) for name in "ab" for n in (10, 20)]
    assert {entry.total_run_count for entry in desk.scheduler.schedule.values()} == {2}


def test_apply_async_claims_the_due_slot(desk_of: Callable[..., Desk]) -> None:
    """Celery's `apply_async` reserves the entry by default."""
    desk = desk_of(OwnTick)
    tick = desk.add("tick")
    desk.pass_time(MINUTE)
    desk.scheduler.apply_async(tick)
    assert desk.outbox.slots == [("tick", NOON + MINUTE)]


def test_apply_async_without_reserving_claims_the_present(desk: Desk) -> None:
    """A scheduler may have its reasons to send an entry that is not due."""
    for every in (60, None):
        entry = desk.scheduler.Entry(name=f"every {every}", task="now", schedule=every, app=desk.app)
        desk.pass_time(SECOND)
        desk.scheduler.apply_async(entry, advance=False)
        assert desk.outbox.slots[-1] == (entry.name, desk.now)


def test_overridden_apply_entry_is_called(desk_of: Callable[..., Desk]) -> None:
    """Monitoring hooks into it."""

    class Monitored(Scheduler):
        seen = ""
        sent = ""

        def apply_entry(self, entry: Any, producer: Any = None) -> None:
            self.seen = entry.name
            super().apply_entry(entry, producer)

        def send_task(self, *args: Any, **_: Any) -> None:
            self.sent = args[0]

    desk = desk_of(Monitored)
    desk.add("tick")
    desk.pass_time(MINUTE)
    desk.tick()
    # As the publisher does, in a thread of its own.
    thread = threading.Thread(target=desk.scheduler.send, args=(desk.outbox.dispatches[0].entry, None))
    thread.start()
    thread.join()
    assert (desk.scheduler.seen, desk.scheduler.sent) == ("tick", "shop.tick")


def test_crontab_that_django_celery_beat_hides_is_not_retired(desk_of: Callable[..., Desk]) -> None:
    """It shows a crontab around its time only."""
    enabled = SimpleNamespace(values_list=lambda *_, **__: ["shown", "hidden"])

    class Hiding(Scheduler):
        enabled_models_qs = None
        Model = SimpleNamespace(objects=SimpleNamespace(enabled=lambda: enabled))

    desk = desk_of(Hiding)
    for name in ("shown", "hidden", "removed"):
        desk.add(name)
    desk.tick()
    del desk.scheduler.schedule["hidden"], desk.scheduler.schedule["removed"]
    desk.tick()
    assert {name for name, record in desk.ledger.records.items() if record.retired} == {"removed"}


# Schedulers that keep a file


def test_ended_term_does_not_overwrite_the_schedule_file(desk: Desk, tmp_path: Path) -> None:
    """Neither by `sync` nor by `close`: the next leader may have written it by then."""
    file = str(tmp_path / "schedule")
    desk.app.conf.update(beat_schedule={"tick": {"task": "shop.tick", "schedule": MINUTE}}, result_expires=None)
    scheduler: Any = bind(PersistentScheduler, desk.keeper, lambda: desk.may)(app=desk.app, schedule_filename=file)
    scheduler.tick()
    desk.pass_time(MINUTE)
    scheduler.tick()
    assert desk.sent == ["tick"]
    scheduler.sync()
    count = scheduler.schedule["tick"].total_run_count
    desk.may = False
    scheduler.schedule["tick"].total_run_count = 1000
    scheduler.sync()
    scheduler.close()
    with shelve.open(file) as written:
        assert 0 < written["entries"]["tick"].total_run_count == count


def test_close_writes_the_schedule_file_during_the_term(desk: Desk, tmp_path: Path) -> None:
    file = str(tmp_path / "schedule")
    desk.app.conf.update(beat_schedule={"tick": {"task": "shop.tick", "schedule": MINUTE}}, result_expires=None)
    scheduler: Any = bind(PersistentScheduler, desk.keeper, lambda: desk.may)(app=desk.app, schedule_filename=file)
    scheduler.schedule["tick"].total_run_count = 1000
    scheduler.close()
    with shelve.open(file) as written:
        assert written["entries"]["tick"].total_run_count == 1000


def test_publisher_thread_does_not_write_the_schedule_file(desk: Desk) -> None:
    """The scheduler may be in the middle of a tick."""
    answers: list[bool] = []
    assert desk.scheduler.should_sync()
    thread = threading.Thread(target=lambda: answers.append(desk.scheduler.should_sync()))
    thread.start()
    thread.join()
    assert answers == [False]
