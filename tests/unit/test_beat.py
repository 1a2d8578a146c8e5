"""A scheduler that is bound to a term, and the beat that drives it for as long as the term lasts."""

from __future__ import annotations

import logging
import shelve
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from celery.beat import PersistentScheduler, Scheduler
from celery.schedules import schedule

from celery_pgleader.beat import LeaderBeat, leader_beat
from celery_pgleader.beat import scheduler as module
from celery_pgleader.beat.leader_beat import scheduler_class
from celery_pgleader.beat.scheduler import BATCH, REFUSED_PAUSE, bind
from celery_pgleader.beat.slot_keeper import LedgerAway, SlotKeeper, TermOver
from celery_pgleader.config import Config
from celery_pgleader.election import Leadership, Term
from celery_pgleader.errors import ConfigurationError
from celery_pgleader.slot import HEADER
from celery_pgleader.store import Claimed, Outcome, Superseded
from celery_pgleader.threads import Ending
from tests.support.eventually import eventually
from tests.support.memory import MemoryLedger, Outbox

UTC = timezone.utc
TERM = Term(7, "shop", "a", 11)
NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
CONFIG = Config(database_url="host=nowhere", election="shop")


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


def test_entries_that_are_due_together_are_claimed_together(desk: Desk) -> None:
    """In one round trip; those that are not due are left alone."""
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


def test_very_many_are_claimed_in_batches(desk: Desk) -> None:
    """The next one is for the very next tick; each entry is in one."""
    for number in range(2 * BATCH + 1):
        desk.add(f"due{number}")
    desk.tick()
    desk.pass_time(MINUTE)
    waits = [desk.tick() for _ in range(3)]
    assert waits == [0, 0, 60]
    assert desk.ledger.calls.count("claim") == 3
    assert len(set(desk.sent)) == len(desk.sent) == 2 * BATCH + 1


def test_it_says_when_to_come_back(desk: Desk) -> None:
    """When the next entry is due, and no later than the scheduler's own longest interval."""
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


def test_runs_stay_on_the_grid(desk: Desk) -> None:
    """However late each tick is."""
    desk.add("tick", 10 * SECOND)
    for late in (0, 3, 9, 1, 0, 25):
        desk.pass_time(timedelta(seconds=desk.tick() + late))
    desk.tick()
    assert [(slot - NOON).total_seconds() for _, slot in desk.outbox.slots] == [10, 20, 30, 40, 50, 80]
    assert desk.scheduler.schedule["tick"].total_run_count == 6


def test_the_clock_goes_back(desk: Desk) -> None:
    """No slot is claimed twice, and nothing before the last one; after that the entry goes on."""
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


def test_the_clock_goes_forward(desk: Desk) -> None:
    """As when a host wakes up: what is due then is seen by the next tick."""
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


def test_all_are_asked_again_when_the_clock_was_set(desk: Desk) -> None:
    """When an entry is to be asked is kept by the wall clock, which may be an hour behind what it was."""
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


def test_an_entry_that_cannot_be_calculated_stops_no_other(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """It is asked again later, and does not fill the log until then."""
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


def test_a_schedule_that_is_new_is_met_anew(desk: Desk) -> None:
    """Schedulers with a database make all entries anew; none is run again for that, and none begins anew."""
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


def test_entries_come_and_go(desk: Desk) -> None:
    """Between two ticks: one is met, the other retired, in the next."""
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


def test_a_changed_interval_is_seen_by_the_next_tick(desk: Desk) -> None:
    """Also where the entry stays the same object, if it is put there anew."""
    desk.add("tick", HOUR)
    desk.tick()
    desk.pass_time(MINUTE)
    desk.add("tick", MINUTE)
    desk.tick()
    assert desk.outbox.slots == [("tick", NOON + MINUTE)]


def test_what_another_has_claimed_is_not_sent(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """And asked for again only after a pause; then the entry goes on from there."""
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


def test_a_run_that_is_waited_for(desk_of: Callable[..., Desk]) -> None:
    """It is asked for again after a pause, and holds up no other entry."""
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


def test_a_term_that_is_over_ends_the_tick(desk: Desk) -> None:
    """Nothing is claimed, nothing reserved, nothing sent; and no scheduler swallows it."""
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


def test_a_term_may_end_between_claim_and_sending(desk: Desk) -> None:
    """What was claimed is left for the next leader."""
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
def test_the_ledger_goes_away_in_a_claim(desk: Desk, *, done: bool) -> None:
    """Whether it was done or not: each slot is published once when the ledger is there again."""
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


def test_a_tick_of_ones_own_is_kept(desk_of: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_is_sent_without_being_reserved_is_claimed(desk_of: Callable[..., Desk]) -> None:
    """As Celery's `apply_async` does it; what is not due is sent by nobody."""
    desk = desk_of(OwnTick)
    tick = desk.add("tick")
    desk.pass_time(MINUTE)
    desk.scheduler.apply_async(tick)
    assert desk.outbox.slots == [("tick", NOON + MINUTE)]


# Schedulers that keep a file


def test_it_does_not_overwrite_the_next_leaders_state(desk: Desk, tmp_path: Path) -> None:
    """Neither by `sync` nor by closing the file."""
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


def test_state_is_written_while_it_may_be(desk: Desk, tmp_path: Path) -> None:
    """When the file is closed at the latest."""
    file = str(tmp_path / "schedule")
    desk.app.conf.update(beat_schedule={"tick": {"task": "shop.tick", "schedule": MINUTE}}, result_expires=None)
    scheduler: Any = bind(PersistentScheduler, desk.keeper, lambda: desk.may)(app=desk.app, schedule_filename=file)
    scheduler.schedule["tick"].total_run_count = 1000
    scheduler.close()
    with shelve.open(file) as written:
        assert written["entries"]["tick"].total_run_count == 1000


def test_state_is_not_written_by_the_thread_that_sends(desk: Desk) -> None:
    """The scheduler is in the middle of something then."""
    answers: list[bool] = []
    assert desk.scheduler.should_sync()
    thread = threading.Thread(target=lambda: answers.append(desk.scheduler.should_sync()))
    thread.start()
    thread.join()
    assert answers == [False]


# The beat


class Beat:
    """A beat of an app with a broker in memory, over a ledger in memory."""

    def __init__(self, tmp_path: Path) -> None:
        """Lead."""
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.app.conf.beat_schedule = {"tick": {"task": "shop.tick", "schedule": HOUR}}
        self.ledger = MemoryLedger()
        self.leadership = Leadership()
        self.leadership.gain(TERM, float("inf"), "elected")
        self.file = tmp_path / "schedule"
        self.ended = Ending()
        self.raised: list[BaseException] = []
        self.uptime = 0.0
        self.beat = LeaderBeat(
            self.app,
            "celery.beat:PersistentScheduler",
            str(self.file),
            CONFIG,
            self.leadership,
            clock=lambda: self.uptime,
        )
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.beat.run(TERM, self.ended)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.raised.append(error)

    def end(self) -> None:
        """End the term, and wait until the beat has ended."""
        self.ended.set()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def messages(self) -> list[Any]:
        """Take what is in the queue."""
        with self.app.connection_for_read() as connection, connection.SimpleQueue("celery") as queue:
            return [queue.get(block=False) for _ in range(len(queue))]


@pytest.fixture
def beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beat:
    """Give a beat that is yet to run, with short pauses."""
    made = Beat(tmp_path)
    made.messages()
    monkeypatch.setattr(leader_beat, "Ledger", lambda *_: made.ledger)
    monkeypatch.setattr(leader_beat, "LEDGER_RETRY", 0.001)
    return made


def test_the_beat_ends_at_once(beat: Beat) -> None:
    """However long nothing is due; with the file written and the ledger closed."""
    beat.thread.start()
    eventually(lambda: "register" in beat.ledger.calls, timeout=10)
    beat.end()
    assert beat.leadership.settle(0)
    assert beat.ledger.closed
    with shelve.open(str(beat.file)) as written:
        assert "tick" in written["entries"]
    assert not beat.raised
    assert "pgleader-publisher" not in {thread.name for thread in threading.enumerate()}


def test_the_beat_does_not_begin_in_a_term_that_is_over(beat: Beat) -> None:
    """A late start of one term must not run in the next."""
    beat.leadership.gain(Term(8, "shop", "a", 12), float("inf"), "elected")
    beat.beat.run(TERM, Ending())
    assert not beat.file.parent.joinpath("schedule").exists()
    assert not beat.ledger.calls


def test_an_ending_that_is_over_already(beat: Beat) -> None:
    """The beat does not begin."""
    beat.ended.set()
    beat.beat.run(TERM, beat.ended)
    assert not beat.ledger.calls


def test_what_was_claimed_is_published_and_written_down(beat: Beat) -> None:
    """First of all, what the last leader left; with its slot in the header."""
    slot = datetime.now(UTC) - HOUR
    beat.ledger.unsettled = [Claimed("tick", slot, 6), Claimed("gone", slot, 6)]
    beat.thread.start()
    eventually(lambda: len(beat.ledger.outcomes) == 2, timeout=10)
    beat.end()
    assert set(beat.ledger.outcomes) == {
        Outcome("gone", slot, "expired", "the entry is gone"),
        Outcome("tick", slot, "published"),
    }
    (message,) = beat.messages()
    assert message.headers["task"] == "shop.tick"
    assert message.headers[HEADER]["term"] == 6
    assert message.headers[HEADER]["at"] == slot.isoformat()


def test_while_the_ledger_is_away(beat: Beat, caplog: pytest.LogCaptureFixture) -> None:
    """It is asked again and again, and said once; nothing is sent. Then the beat goes on as if it had begun."""
    caplog.set_level(logging.INFO)
    beat.ledger.error = psycopg.OperationalError("no route to host")
    beat.ledger.unsettled = [Claimed("tick", datetime.now(UTC), 6)]
    beat.thread.start()
    eventually(lambda: len(beat.ledger.calls) > 5, timeout=10)
    assert not beat.messages()
    beat.ledger.error = None
    eventually(lambda: beat.ledger.outcomes, timeout=10)
    beat.end()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["pgleader: the ledger cannot be asked, and nothing is sent until it can: no route to host"]
    assert len(beat.messages()) == 1
    assert not beat.raised


def test_a_term_that_another_has_ended(beat: Beat) -> None:
    """The ledger says so: the beat ends by itself, without a fuss, and writes no state."""
    beat.ledger.error = Superseded()
    beat.thread.start()
    beat.thread.join(10)
    assert not beat.thread.is_alive()
    assert not beat.raised
    assert beat.ledger.closed


def test_a_scheduler_that_cannot_be_set_up(beat: Beat) -> None:
    """What it raises is raised, and nothing is left behind."""
    beat.app.conf.beat_schedule = {"tick": {"task": "shop.tick", "schedule": HOUR, "no such": "field"}}
    with pytest.raises(TypeError):
        LeaderBeat(beat.app, Scheduler, "", CONFIG, beat.leadership).run(TERM, beat.ended)
    assert beat.ledger.closed
    assert beat.leadership.settle(0)


def test_old_slots_are_forgotten_while_nothing_is_due(beat: Beat) -> None:
    """A batch a turn, until there are none left; then not before a while."""
    batches = [5, 5, 0]
    pruned: list[int] = []

    def prune() -> int:
        pruned.append(batches.pop(0))
        return pruned[-1]

    beat.ledger.prune = prune  # type: ignore[method-assign]
    bell = threading.Event()
    term_beat = leader_beat.TermBeat(beat.app, CONFIG, TERM, lambda: True, bell)
    term_beat.start(Scheduler, "")
    for _ in range(6):
        assert term_beat.turn() > leader_beat.CHORE_TIME
    term_beat.stop()
    assert pruned == [5, 5, 0]


def test_a_beat_that_hangs_is_trouble(beat: Beat) -> None:
    """Counted from when the term was first asked about; one that moves is none."""
    assert beat.beat.trouble(TERM) is None
    beat.uptime = 30.0
    assert beat.beat.trouble(TERM) is None
    beat.uptime = 31.0
    assert beat.beat.trouble(TERM) == "the beat has not moved for 31 s"
    assert beat.beat.trouble(Term(8, "shop", "a", 12)) is None
    beat.uptime = 100.0
    beat.thread.start()
    eventually(lambda: beat.beat.trouble(TERM) is None, timeout=10)
    beat.end()


@pytest.mark.parametrize(("skew", "words"), [(90.04, "90.0 s ahead of"), (-1.5, "1.5 s behind"), (0.9, "")])
def test_a_clock_that_is_wrong(beat: Beat, caplog: pytest.LogCaptureFixture, skew: float, words: str) -> None:
    """It is said at the beginning of a term: slots are due by it."""
    beat.ledger.clock_skew = skew
    beat.thread.start()
    eventually(lambda: "register" in beat.ledger.calls, timeout=10)
    beat.end()
    said = [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]
    assert len(said) == bool(words)
    assert words in " ".join(said)


def test_how_a_scheduler_may_be_named() -> None:
    """A class, where it is, or by what a package has registered."""
    assert scheduler_class(Scheduler) is Scheduler
    assert scheduler_class("celery.beat:Scheduler") is Scheduler
    assert scheduler_class("celery.beat.PersistentScheduler") is PersistentScheduler
    assert scheduler_class("pgleader").__name__ == "PgLeaderScheduler"
    with pytest.raises(ConfigurationError, match=r"^beat_scheduler = 'nowhere:Scheduler': cannot be imported: "):
        scheduler_class("nowhere:Scheduler")
