"""What the keeper of slots has the ledger remember, and what it has published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule

from celery_pgleader.beat.slot_keeper import Claim, LedgerAway, SlotKeeper, TermOver, describe
from celery_pgleader.beat.slots import UTC, task_id_of
from celery_pgleader.config import Config
from celery_pgleader.election import Term
from celery_pgleader.slot import HEADER, Slot
from celery_pgleader.store import Claimed, EntryRecord, Outcome, SlotRow, Superseded
from tests.support.memory import MemoryLedger, Outbox

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
EPSILON = timedelta(microseconds=1)
TERM = Term(7, "shop", "a", 11)


class World:
    """A ledger, an outbox and a clock, and keepers of one term after the other."""

    def __init__(self) -> None:
        """Begin at noon, with an empty ledger."""
        self.now = NOON
        self.app = Celery("shop", set_as_current=False)
        self.ledger = MemoryLedger()
        self.outbox = Outbox()
        self.entries: dict[str, Any] = {}
        self.keeper = self.new_term()

    def new_term(self, **policies: Any) -> SlotKeeper:
        """Return a keeper that has read the ledger, and put it in the place of the last one."""
        config = Config(database_url="host=nowhere", election="shop", schedule=policies)
        self.outbox.dispatches.clear()
        self.keeper = SlotKeeper(config, TERM, self.ledger, self.outbox, lambda: self.now)
        self.keeper.recover(self.entries.get)
        return self.keeper

    def add(self, name: str, every: Any = MINUTE, **fields: Any) -> Any:
        """Put an entry into the schedule, as if it was last run now; whoever keeps slots is yet to meet it."""
        if isinstance(every, timedelta):
            every = schedule(every, app=self.app)
        every.nowfun = lambda: self.now
        made: Any = ScheduleEntry(
            name=name, schedule=every, app=self.app, **{"task": f"shop.{name}", "last_run_at": self.now, **fields}
        )
        self.entries[name] = made
        return made

    def meet(self, *, all_of_them: bool = True) -> None:
        """Have the keeper meet the schedule."""
        self.keeper.meet(self.entries, names=set(self.entries) if all_of_them else None)

    def claim(self, *names: str) -> dict[str, list[datetime]]:
        """Claim for entries, by default for all, and publish; return the slots that are run by entry."""
        entries = [self.entries[name] for name in names or self.entries]
        claims = self.keeper.claim(entries)
        for name, of_entry in claims.items():
            for claim in of_entry:
                self.keeper.publish(self.entries[name], claim)
        return {name: [claim.slot for claim in of_entry] for name, of_entry in claims.items()}


@pytest.fixture
def world() -> World:
    """Give a world."""
    return World()


def stretches(world: World, entry: str) -> list[tuple[datetime, datetime, str, str | None]]:
    return [(row.slot, row.through, row.state, row.reason) for row in world.ledger.rows if row.entry == entry]


# Entries


def test_new_entry_begins_when_it_is_first_seen(world: World) -> None:
    """Nothing is due before its first period is over; from then on it stays on its grid."""
    tick = world.add("tick")
    world.meet()
    assert world.ledger.records == {"tick": EntryRecord("shop.tick", "every 0:01:00", NOON, NOON)}
    world.now += MINUTE - EPSILON
    assert world.claim() == {"tick": []}
    world.now += EPSILON
    assert world.claim() == {"tick": [NOON + MINUTE]}
    world.now += MINUTE + 3 * SECOND
    assert world.claim() == {"tick": [NOON + 2 * MINUTE]}
    world.keeper.remind(tick)
    assert tick.last_run_at == NOON + 2 * MINUTE


def test_new_entry_continues_from_the_last_run_of_its_scheduler(world: World) -> None:
    """Slots missed since then are made up for."""
    world.add("tick", HOUR, last_run_at=NOON - 150 * MINUTE)
    world.meet()
    assert world.claim() == {"tick": [NOON - 30 * MINUTE]}
    assert stretches(world, "tick") == [
        (NOON - 90 * MINUTE, NOON - 90 * MINUTE, "skipped", "coalesced"),
        (NOON - 30 * MINUTE, NOON - 30 * MINUTE, "claimed", None),
    ]


@pytest.mark.parametrize("last", [NOON - 30 * 365 * DAY, NOON + DAY])
def test_impossible_last_run_is_ignored(world: World, last: datetime) -> None:
    """Schedulers say "never" with a date long ago; a clock may have been wrong."""
    world.add("tick", HOUR, last_run_at=last)
    world.meet()
    assert world.ledger.records["tick"].since == NOON
    assert world.claim() == {"tick": []}


def test_last_run_without_a_zone_is_in_utc(world: World) -> None:
    """As Celery takes it."""
    world.add("tick", HOUR, last_run_at=(NOON - MINUTE).replace(tzinfo=None))
    world.meet()
    assert world.ledger.records["tick"].since == NOON - MINUTE


def test_entry_without_a_last_run_is_due_at_once(world: World) -> None:
    """RedBeat has entries without one."""
    tick = world.add("tick", HOUR)
    tick.last_run_at = None
    world.meet()
    assert world.claim() == {"tick": [NOON]}
    world.now += HOUR
    assert world.claim() == {"tick": [NOON + HOUR]}


def test_entry_with_a_start_time_is_due_then(world: World) -> None:
    """It is counted from then; a time in the past is not made up for."""
    later, earlier = world.add("later", HOUR), world.add("earlier", HOUR)
    later.model = SimpleNamespace(start_time=NOON + 90 * MINUTE)
    earlier.model = SimpleNamespace(start_time=NOON - 90 * MINUTE)
    world.meet()
    assert world.claim() == {"later": [], "earlier": []}
    world.now += 30 * MINUTE
    assert world.claim() == {"later": [], "earlier": [NOON + 30 * MINUTE]}
    world.now += HOUR
    assert world.claim() == {"later": [NOON + 90 * MINUTE], "earlier": [NOON + 90 * MINUTE]}


def test_unchanged_entries_are_registered_once(world: World) -> None:
    """By this leader or the next."""
    world.add("tick")
    world.add("nightly", crontab(0, 3, app=world.app))
    world.meet()
    world.meet()
    world.new_term()
    world.now += DAY
    world.meet()
    assert world.ledger.calls.count("register") == 1


def test_next_leader_continues_where_the_last_one_ended(world: World) -> None:
    """Whatever its own scheduler remembers: neither a slot twice, nor a new phase, nor a gap."""
    world.add("tick", 10 * SECOND)
    world.meet()
    world.now += 10 * SECOND
    assert world.claim() == {"tick": [NOON + 10 * SECOND]}
    world.now += 3 * SECOND
    fresh = world.add("tick", 10 * SECOND)
    world.new_term()
    world.meet()
    assert fresh.last_run_at == NOON + 10 * SECOND
    assert world.claim() == {"tick": []}
    world.now += 8 * SECOND
    assert world.claim() == {"tick": [NOON + 20 * SECOND]}


def test_changed_interval_is_counted_from_the_last_run(world: World) -> None:
    """As in Celery; what the new one would have made due since then is due."""
    world.add("tick", HOUR)
    world.meet()
    world.now = NOON + HOUR
    world.claim()
    world.now = NOON + 90 * MINUTE
    tick = world.add("tick", 20 * MINUTE)
    world.meet()
    assert world.ledger.records["tick"].schedule == "every 0:20:00"
    assert tick.last_run_at == NOON + HOUR
    assert world.claim() == {"tick": [NOON + 80 * MINUTE]}
    world.now = NOON + 100 * MINUTE
    assert world.claim() == {"tick": [NOON + 100 * MINUTE]}


def test_interval_changed_back_and_forth_repeats_no_slot(world: World) -> None:
    for minutes in (60, 20, 60, 7, 30):
        world.add("tick", minutes * MINUTE)
        world.meet()
        world.claim()
        world.now += 25 * MINUTE
    runs = world.ledger.runs("tick")
    assert runs == sorted(set(runs))
    assert runs == [NOON + 20 * MINUTE, NOON + 69 * MINUTE, NOON + 99 * MINUTE]


def test_changed_crontab_makes_up_for_no_missed_slot(world: World) -> None:
    world.add("nightly", crontab(0, 3, app=world.app))
    world.meet()
    world.now = NOON + 2 * DAY
    world.add("nightly", crontab(0, 4, app=world.app))
    world.meet()
    assert world.claim() == {"nightly": []}
    world.now += DAY
    assert world.claim() == {"nightly": [datetime(2026, 1, 18, 4, tzinfo=UTC)]}


@pytest.mark.parametrize("first_is_interval", [True, False])
def test_another_kind_of_schedule_makes_up_for_no_missed_slot(world: World, *, first_is_interval: bool) -> None:
    """From an interval to a crontab, and the other way."""
    kinds: list[Any] = [HOUR, crontab(30, app=world.app)]
    first, second = kinds if first_is_interval else reversed(kinds)
    world.add("tick", first)
    world.meet()
    world.now += 10 * HOUR + 40 * MINUTE
    world.add("tick", second)
    world.meet()
    assert world.claim() == {"tick": []}
    world.now += HOUR
    due = NOON + (11 * HOUR + 30 * MINUTE if first_is_interval else 11 * HOUR + 40 * MINUTE)
    assert world.claim() == {"tick": [due]}


def test_crontab_in_another_zone_makes_up_for_no_missed_slot(world: World) -> None:
    """The zone is part of what is compared, or an hour that is over would be made up for."""
    world.add("nightly", crontab(0, 12, app=world.app))
    world.meet()
    world.now += HOUR
    world.app = Celery("shop", set_as_current=False)
    world.app.conf.update(timezone="America/New_York")
    world.add("nightly", crontab(0, 12, app=world.app))
    world.meet()
    assert world.ledger.records["nightly"].since == NOON + HOUR
    assert world.claim() == {"nightly": []}
    world.now = NOON + 5 * HOUR
    assert world.claim() == {"nightly": [NOON + 5 * HOUR]}


def test_changed_task_keeps_the_slots(world: World) -> None:
    """The new task is recorded."""
    world.add("tick", HOUR)
    world.meet()
    world.now += 90 * MINUTE
    world.add("tick", HOUR, task="shop.other")
    world.meet()
    assert world.ledger.records["tick"] == EntryRecord("shop.other", "every 1:00:00", NOON, NOON)
    assert world.claim() == {"tick": [NOON + HOUR]}


def test_returning_entry_makes_up_for_no_missed_slot(world: World) -> None:
    """Nobody wanted it to run while it was not in the schedule. It keeps its phase."""
    world.add("tick", HOUR)
    world.add("tock", HOUR)
    world.meet()
    del world.entries["tick"]
    world.meet(all_of_them=False)
    assert not world.ledger.records["tick"].retired, "what is met may be a part of the schedule"
    world.meet()
    world.meet()
    assert world.ledger.records["tick"].retired
    assert world.ledger.calls.count("retire") == 1
    world.now += 10 * HOUR + 25 * MINUTE
    tick = world.add("tick", HOUR)
    world.meet()
    assert not world.ledger.records["tick"].retired
    assert world.ledger.records["tick"].since == world.now
    assert tick.last_run_at == NOON + 10 * HOUR, "on its grid, for Celery to count from"
    assert world.claim("tick") == {"tick": []}
    world.now += 40 * MINUTE
    assert world.claim("tick") == {"tick": [NOON + 11 * HOUR]}


def test_returning_entry_with_another_interval_begins_anew(world: World) -> None:
    world.add("tick", HOUR)
    world.meet()
    del world.entries["tick"]
    world.meet()
    world.now += 10 * HOUR
    world.add("tick", 3 * MINUTE)
    world.meet()
    assert world.claim() == {"tick": []}
    world.now += 3 * MINUTE
    assert world.claim() == {"tick": [NOON + 10 * HOUR + 3 * MINUTE]}


def test_last_run_is_given_in_the_zone_of_the_schedule(world: World) -> None:
    """Celery before 5.7, and relative intervals, go by the zone in which they are told of the last run."""
    world.app.conf.update(timezone="Europe/Berlin")
    daily = world.add("daily", crontab(0, 12, app=world.app))
    relative = world.add("relative", schedule(DAY, relative=True, app=world.app))
    plain = world.add("plain", HOUR)
    world.meet()
    assert daily.last_run_at == relative.last_run_at == plain.last_run_at == NOON
    assert str(daily.last_run_at.tzinfo) == str(relative.last_run_at.tzinfo) == "Europe/Berlin"
    # Added to, as Celery does, it is an hour off when clocks are changed.
    assert plain.last_run_at.tzinfo is UTC
    # It is 13:00 in Berlin.
    world.now = datetime(2026, 1, 16, 10, 59, 59, tzinfo=UTC)
    assert not daily.is_due()[0]
    world.now += SECOND
    assert daily.is_due()[0]
    assert relative.is_due()[0]
    assert world.claim("daily", "relative") == {
        "daily": [world.now],
        "relative": [datetime(2026, 1, 15, 23, tzinfo=UTC)],
    }


def test_description_changes_only_with_the_slots() -> None:
    app = Celery("shop", set_as_current=False)
    abroad = Celery("shop", set_as_current=False)
    abroad.conf.update(timezone="Europe/Berlin")
    assert describe(schedule(90, app=app)) == describe(schedule(90, app=abroad)) == "every 0:01:30"
    assert describe(schedule(90.5, app=app)) == "every 0:01:30.500000"
    assert describe(crontab(0, 3, app=app)) == describe(crontab(0, 3, app=app))
    different = [
        schedule(HOUR, app=app),
        schedule(HOUR, relative=True, app=app),
        crontab(0, 3, app=app),
        crontab(3, 0, app=app),
        crontab(0, 3, day_of_week="1", app=app),
        crontab(0, 3, day_of_month="1", app=app),
        crontab(0, 3, month_of_year="1", app=app),
        crontab(0, 3, app=abroad),
    ]
    assert len({describe(plan) for plan in different}) == len(different)

    class Own(schedule):
        """Somebody's own."""

        __repr__ = object.__repr__

    assert describe(Own(HOUR, app=app)) == describe(Own(HOUR, app=app)), "an address says nothing"
    for plan in different:
        assert "\n" not in describe(plan)


# Claims


def test_entries_are_claimed_in_one_statement(world: World) -> None:
    """With the task id that will be published; skipped slots have none."""
    for name in ("a", "b", "c"):
        world.add(name)
    world.meet()
    world.now += 3 * MINUTE
    assert world.claim() == {name: [NOON + 3 * MINUTE] for name in "abc"}
    assert world.ledger.calls.count("claim") == 1
    assert [row for row in world.ledger.rows if row.entry == "b"] == [
        SlotRow("b", NOON + MINUTE, NOON + 2 * MINUTE, 2, "skipped", "coalesced", None),
        SlotRow(
            "b", NOON + 3 * MINUTE, NOON + 3 * MINUTE, 1, "claimed", None, task_id_of("shop", "b", NOON + 3 * MINUTE)
        ),
    ]


def test_each_entry_follows_its_policy(world: World) -> None:
    """By name or pattern."""
    for name in ("a", "b", "c"):
        world.add(name)
    world.new_term(b={"misfire": "all"}, c={"misfire": "skip"})
    world.meet()
    world.now += 3 * MINUTE + 30 * SECOND
    assert world.claim() == {
        "a": [NOON + 3 * MINUTE],
        "b": [NOON + MINUTE, NOON + 2 * MINUTE, NOON + 3 * MINUTE],
        "c": [],
    }
    assert stretches(world, "c") == [(NOON + MINUTE, NOON + 3 * MINUTE, "expired", "misfire_grace")]


def test_claim_continues_where_the_last_one_stopped(world: World) -> None:
    """With `all` after a long time without a leader."""
    world.add("tick", SECOND)
    world.new_term(tick={"misfire": "all"})
    world.meet()
    world.now += 250 * SECOND
    assert [len(world.claim()["tick"]) for _ in range(4)] == [100, 100, 50, 0]
    assert world.ledger.runs("tick") == [NOON + n * SECOND for n in range(1, 251)]


def test_ledger_is_not_asked_without_slots(world: World) -> None:
    """An entry that is due too early, by a hair, counts as handled."""
    world.add("tick")
    world.meet()
    assert world.claim() == {"tick": []}
    assert "claim" not in world.ledger.calls


def test_slot_recorded_by_another_leader_is_refused(world: World) -> None:
    """It holds up no other entry, and what the ledger says is believed."""
    tick, tock = world.add("tick"), world.add("tock")
    world.meet()
    world.now += 5 * MINUTE
    world.ledger.records["tick"] = replace(world.ledger.records["tick"], last_slot=NOON + 4 * MINUTE)
    assert world.claim() == {"tock": [NOON + 5 * MINUTE]}
    assert world.ledger.runs("tick") == []
    world.keeper.remind(tick)
    world.keeper.remind(tock)
    assert (tick.last_run_at, tock.last_run_at) == (NOON + 4 * MINUTE, NOON + 5 * MINUTE)
    assert world.claim() == {"tick": [NOON + 5 * MINUTE], "tock": []}


def test_clock_set_back_claims_no_slot_again(world: World) -> None:
    """The entry continues once the clock is where it was."""
    world.add("tick")
    world.add("cron", crontab(app=world.app))
    world.meet()
    runs = []
    for minute in (1, 2, -30, 0, 1, 2, 3):
        world.now = NOON + minute * MINUTE
        runs.append(world.claim())
    assert [of_minute["tick"] for of_minute in runs] == [of_minute["cron"] for of_minute in runs]
    assert [of_minute["tick"] for of_minute in runs] == [
        [NOON + MINUTE],
        [NOON + 2 * MINUTE],
        *[[]] * 4,
        [NOON + 3 * MINUTE],
    ]


class Whim(schedule):
    """Due whenever it says so."""

    due = True

    def is_due(self, last_run_at: datetime) -> Any:
        """Say so."""
        return self.due, 5.0


def test_schedule_that_only_says_it_is_due_gets_the_present_slot(world: World) -> None:
    whim = Whim(DAY, app=world.app)
    world.add("whim", whim)
    world.meet()
    assert world.claim() == {"whim": []}, "an instant that is accounted for has no second slot"
    world.now += 7 * SECOND
    assert world.claim() == {"whim": [NOON + 7 * SECOND]}
    assert world.claim() == {"whim": []}
    world.now += SECOND
    whim.due = False
    assert world.claim() == {"whim": []}
    whim.due = True
    world.now -= HOUR
    assert world.claim() == {"whim": []}


def test_interval_of_zero_is_always_due(world: World) -> None:
    """As in Celery."""
    world.add("hurry", timedelta(0))
    world.meet()
    for _ in range(3):
        world.now += EPSILON
        assert world.claim() == {"hurry": [world.now]}


# Overlaps


def test_overlapping_slot_is_recorded_as_skipped(world: World) -> None:
    """With nothing running it is claimed."""
    for name in ("tick", "tock"):
        world.add(name)
    world.new_term(**{"t*": {"overlap": "skip"}})
    world.meet()
    world.now += 2 * MINUTE
    world.ledger.goes_on = {"tick"}
    assert world.claim() == {"tick": [], "tock": [NOON + 2 * MINUTE]}
    assert stretches(world, "tick") == [
        (NOON + MINUTE, NOON + MINUTE, "skipped", "coalesced"),
        (NOON + 2 * MINUTE, NOON + 2 * MINUTE, "skipped", "overlap"),
    ]
    world.ledger.goes_on = set()
    world.now += MINUTE
    assert world.claim() == {"tick": [NOON + 3 * MINUTE], "tock": [NOON + 3 * MINUTE]}


def test_overlapping_slot_waits_for_the_run_to_end(world: World) -> None:
    """Then the policy decides which slots are run."""
    for name in ("tick", "tock"):
        world.add(name)
    world.new_term(tick={"overlap": "wait"})
    world.meet()
    world.now += MINUTE
    world.ledger.goes_on = {"tick", "tock"}
    assert world.claim() == {"tock": [NOON + MINUTE]}
    world.now += 2 * MINUTE
    assert world.claim("tick") == {}
    assert stretches(world, "tick") == []
    world.ledger.goes_on = set()
    world.now += SECOND
    assert world.claim("tick") == {"tick": [NOON + 3 * MINUTE]}


def test_runs_that_may_overlap_are_not_asked_for(world: World) -> None:
    world.add("tick")
    world.meet()
    world.now += MINUTE
    world.claim()
    assert "running" not in world.ledger.calls


# What is published


def test_message_carries_task_id_and_slot(world: World) -> None:
    """The entry itself is left as it was."""
    options = {"queue": "slow", "headers": {"mine": 1}}
    tick = world.add("tick", options=options, args=(1,), kwargs={"a": 2})
    world.new_term(tick={"misfire_grace": 60, "deduplicate": True, "overlap": "wait"})
    world.meet()
    world.now += MINUTE + 3 * SECOND
    world.claim()
    (dispatch,) = world.outbox.dispatches
    slot = Slot("shop", "tick", NOON + MINUTE, 7, catch_up=False, deduplicate=True, overlap="wait")
    assert (dispatch.name, dispatch.slot) == ("tick", NOON + MINUTE)
    assert dispatch.entry.options == {
        "queue": "slow",
        "task_id": task_id_of("shop", "tick", NOON + MINUTE),
        "headers": {"mine": 1, HEADER: slot.to_header()},
    }
    assert (dispatch.entry.name, dispatch.entry.task, dispatch.entry.args) == ("tick", "shop.tick", (1,))
    assert dispatch.expires_at == (NOON + 2 * MINUTE).timestamp()
    assert dispatch.older_are == "coalesced"
    assert tick.options == {"queue": "slow", "headers": {"mine": 1}}
    assert Slot.of_request(SimpleNamespace(get={HEADER: slot.to_header()}.get)) == slot


@pytest.mark.parametrize("options", [None, {}, {"headers": None}])
def test_entry_without_options_gets_task_id_and_headers(world: World, options: dict[str, Any] | None) -> None:
    """Some schedulers have none, and some have no headers."""
    tick = world.add("tick")
    tick.options = options
    world.meet()
    world.now += MINUTE
    world.claim()
    assert set(world.outbox.dispatches[0].entry.options) == {"task_id", "headers"}
    assert tick.options == options


def test_run_over_ten_seconds_late_says_that_it_catches_up(world: World) -> None:
    world.add("tick", HOUR)
    world.add("tock", HOUR)
    world.meet()
    world.now += HOUR + 10 * SECOND
    world.claim("tick")
    world.now += EPSILON
    world.claim("tock")
    on_time, late = (dispatch.entry.options["headers"][HEADER]["catch_up"] for dispatch in world.outbox.dispatches)
    assert (on_time, late) == (False, True)


def test_only_misfire_all_keeps_older_waiting_slots(world: World) -> None:
    """With the other policies the newest replaces them, should the broker be away."""
    for name in ("a", "b", "c"):
        world.add(name)
    world.new_term(b={"misfire": "all"}, c={"misfire": "skip"})
    world.meet()
    world.now += MINUTE
    world.claim()
    assert {dispatch.name: dispatch.older_are for dispatch in world.outbox.dispatches} == {
        "a": "coalesced",
        "b": None,
        "c": "missed",
    }
    assert {dispatch.name: dispatch.expires_at for dispatch in world.outbox.dispatches} == {
        "a": float("inf"),
        "b": float("inf"),
        "c": (NOON + MINUTE + 10 * SECOND).timestamp(),
    }


def test_next_leader_publishes_slots_left_claimed(world: World) -> None:
    """With the same task id, and the term in which they were claimed; oldest first."""
    world.add("tick")
    world.new_term(tick={"misfire": "all"})
    world.meet()
    world.now += 2 * MINUTE
    world.claim()
    before = [dispatch.entry.options for dispatch in world.outbox.dispatches]
    world.ledger.unsettled = [replace(claimed, term=5) for claimed in reversed(world.ledger.unsettled)]
    world.now += MINUTE
    world.new_term(tick={"misfire": "all"})
    after = [dispatch.entry.options for dispatch in world.outbox.dispatches]
    assert [dispatch.slot for dispatch in world.outbox.dispatches] == [NOON + MINUTE, NOON + 2 * MINUTE]
    assert [options["task_id"] for options in after] == [options["task_id"] for options in before]
    for options in after:
        assert options["headers"][HEADER]["term"] == 5
        assert options["headers"][HEADER]["catch_up"]
    assert [claimed.slot for claimed in world.ledger.claimed()] == [NOON + MINUTE, NOON + 2 * MINUTE]


def test_claimed_slot_of_a_removed_entry_expires(world: World) -> None:
    """The others are published."""
    world.add("tick")
    world.ledger.unsettled = [Claimed("gone", NOON, 6), Claimed("tick", NOON, 6)]
    world.new_term()
    assert [dispatch.name for dispatch in world.outbox.dispatches] == ["tick"]
    assert world.ledger.outcomes == [Outcome("gone", NOON, "expired", "the entry is gone")]
    assert world.ledger.claimed() == [Claimed("tick", NOON, 6)]


def test_slot_under_way_is_not_published_again(world: World) -> None:
    """However often the ledger says that it is claimed."""
    world.add("tick")
    world.meet()
    world.now += MINUTE
    world.claim()
    for _ in range(2):
        world.keeper.publish_claimed(world.entries.get)
        world.keeper.recover(world.entries.get)
    assert len(world.outbox.dispatches) == 1

    published = Outcome("tick", NOON + MINUTE, "published")
    world.ledger.error = psycopg.OperationalError("away")
    with pytest.raises(LedgerAway):
        world.keeper.settle([published])
    world.ledger.error = None
    world.keeper.publish_claimed(world.entries.get)
    assert len(world.outbox.dispatches) == 1, "what could not be written down was published nevertheless"

    world.keeper.settle([published])
    assert world.ledger.outcomes == [published]
    world.keeper.publish_claimed(world.entries.get)
    assert len(world.outbox.dispatches) == 1


def test_claim_whose_answer_was_lost_is_published(world: World) -> None:
    """The connection breaks after the server has done it: it is found when the ledger is there again."""
    world.add("tick")
    world.meet()
    world.now += MINUTE
    world.ledger.records["tick"] = replace(world.ledger.records["tick"], last_slot=world.now)
    world.ledger.unsettled = [Claimed("tick", world.now, 7)]
    world.ledger.error = psycopg.OperationalError("server closed the connection unexpectedly\n\tThis probably means")
    with pytest.raises(LedgerAway, match="server closed the connection") as away:
        world.claim()
    assert str(away.value) == str(away.value).strip()
    world.ledger.error = None
    world.keeper.recover(world.entries.get)
    assert [dispatch.slot for dispatch in world.outbox.dispatches] == [NOON + MINUTE]
    assert world.claim() == {"tick": []}


@pytest.mark.parametrize(
    "ask",
    [
        lambda world: world.keeper.recover(world.entries.get),
        lambda world: world.keeper.publish_claimed(world.entries.get),
        lambda world: (world.add("new"), world.meet()),
        lambda world: (world.entries.pop("tick"), world.meet()),
        lambda world: world.claim(),
        lambda world: world.keeper.settle([Outcome("tick", NOON, "published")]),
        lambda world: world.keeper.prune(),
    ],
    ids=["recover", "publish_claimed", "register", "retire", "claim", "settle", "prune"],
)
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (psycopg.OperationalError("gone"), LedgerAway),
        (psycopg.errors.SerializationFailure("again"), LedgerAway),
        (Superseded(), TermOver),
    ],
)
def test_ledger_error_passes_every_scheduler(
    world: World, error: Exception, raised: type[BaseException], ask: Callable[[World], object]
) -> None:
    """It is no `Exception`, which schedulers swallow; nothing is published."""
    world.add("tick")
    world.meet()
    world.now += MINUTE
    world.ledger.error = error
    with pytest.raises(raised):
        ask(world)
    assert not world.outbox.dispatches
    assert not issubclass(raised, Exception)


def test_nothing_is_claimed_while_runs_are_not_known(world: World) -> None:
    world.add("tick")
    world.new_term(tick={"overlap": "skip"})
    world.meet()
    world.now += MINUTE
    world.ledger.error = psycopg.OperationalError("gone")
    with pytest.raises(LedgerAway):
        world.claim()
    assert world.ledger.calls[-1] == "running"
    world.ledger.error = None
    assert world.claim() == {"tick": [NOON + MINUTE]}


def test_claims_are_equal_by_instant_and_term() -> None:
    assert Claim(NOON, 7) == Claim(NOON.astimezone(ZoneInfo("Europe/Berlin")), 7)
    assert Claim(NOON, 7) != Claim(NOON, 8)


# What operators order


def test_next_slot_is_recorded_with_entry_and_claim(world: World) -> None:
    """Also where there is more to come than was claimed."""
    world.new_term(many={"misfire": "all"})
    world.add("tick")
    world.add("many", SECOND)
    world.meet()
    assert world.ledger.records["tick"].next_slot == NOON + MINUTE
    world.now += 3 * MINUTE + SECOND
    world.claim()
    assert world.ledger.records["tick"].next_slot == NOON + 4 * MINUTE
    assert world.ledger.records["many"].next_slot == NOON + 101 * SECOND


def test_slots_of_a_paused_entry_are_skipped(world: World) -> None:
    """From the claim that first sees the pause to the one that sees its end."""
    world.add("tick")
    world.add("tock")
    world.meet()
    world.now += MINUTE
    assert world.claim() == {"tick": [NOON + MINUTE], "tock": [NOON + MINUTE]}
    # What an operator writes, and this leader has not read.
    world.ledger.records["tick"] = replace(world.ledger.records["tick"], paused=True)
    world.now += MINUTE
    assert world.claim() == {"tick": [], "tock": [NOON + 2 * MINUTE]}
    assert stretches(world, "tick")[-1] == (NOON + 2 * MINUTE, NOON + 2 * MINUTE, "skipped", "paused")
    world.now += MINUTE
    assert world.claim()["tick"] == []
    world.ledger.records["tick"] = replace(world.ledger.records["tick"], paused=False)
    world.now += MINUTE
    assert world.claim()["tick"] == [NOON + 4 * MINUTE]
    assert [reason for _, _, _, reason in stretches(world, "tick")] == [None, "paused", "paused", None]


@pytest.mark.parametrize("gone", [True, False])
def test_overdue_entry_that_is_gone_or_disabled_is_retired(world: World, *, gone: bool) -> None:
    """Some schedulers do not tell what was removed; an entry that waits for a run to end stays."""
    world.add("tick")
    world.add("slow")
    world.meet(all_of_them=False)
    if gone:
        del world.entries["tick"]
    else:
        world.entries["tick"].enabled = False
    world.now += MINUTE + 9 * SECOND
    world.keeper.retire_overdue(world.entries.get)
    assert not world.ledger.records["tick"].retired
    world.now += 2 * SECOND
    world.keeper.retire_overdue(world.entries.get)
    assert world.ledger.records["tick"].retired
    assert not world.ledger.records["slow"].retired
