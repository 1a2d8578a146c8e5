"""Slots: which are due, of every kind of schedule, and what becomes of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, crontab, schedule, solar
from django_celery_beat.tzcrontab import TzAwareCrontab  # type: ignore[import-untyped]

from celery_pgleader.beat.slots import (
    LONGEST_WALK,
    MOST_RUNS,
    UTC,
    Due,
    Stretch,
    Ticks,
    as_told,
    decide,
    due_slots,
    interval_of,
    left_out,
    next_slot,
    task_id_of,
)
from celery_pgleader.policies import Misfire, Policy

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
EPSILON = timedelta(microseconds=1)


def app_in(zone: str) -> Celery:
    """Return an app in a time zone."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(timezone=zone)
    return app


APPS = {zone: app_in(zone) for zone in ("UTC", "Europe/Berlin")}


def berlin(text: str) -> datetime:
    """Return an instant in UTC, given by what clocks in Berlin show; the second time of two with a trailing `*`."""
    local = datetime.fromisoformat(text.rstrip("*")).replace(tzinfo=BERLIN, fold=int(text.endswith("*")))
    return local.astimezone(UTC)


def shown(instant: datetime) -> str:
    """Return what clocks in Berlin show at an instant; with a trailing `*` if it is for the second time."""
    local = instant.astimezone(BERLIN)
    return f"{local:%Y-%m-%d %H:%M}{'*' * local.fold}"


def walk(plan: Any, after: datetime, count: int) -> list[str]:
    """Return the next slots of a schedule of an app in Berlin, as clocks there show them."""
    plan.app = APPS["Europe/Berlin"]
    slots: list[datetime] = []
    for _ in range(count):
        slot = next_slot(plan, slots[-1] if slots else after)
        assert slot is not None
        assert slot.tzinfo is UTC
        slots.append(slot)
    assert slots == sorted(set(slots))
    return [shown(slot) for slot in slots]


# Intervals


def test_interval_is_counted_from_its_anchor() -> None:
    """However late the present is, and whatever was accounted for last: no drift, and no new phase."""
    plan = schedule(10 * SECOND)
    due = due_slots(plan, NOON, NOON + 23 * SECOND, NOON + 47 * SECOND)
    assert list(due.slots) == [NOON + 30 * SECOND, NOON + 40 * SECOND]
    assert due.complete
    # Whoever claims late, again and again, stays on the grid.
    after = NOON
    for late in (0, 7, 9.999999, 3, 0):
        now = after + 10 * SECOND + timedelta(seconds=late)
        (slot,) = due_slots(plan, NOON, after, now).slots
        assert (slot - NOON) % (10 * SECOND) == timedelta(0)
        after = slot
    assert after == NOON + 50 * SECOND


def test_interval_is_due_at_the_very_instant() -> None:
    """Neither a microsecond before, nor again at the instant that is accounted for."""
    plan = schedule(MINUTE)
    assert not due_slots(plan, NOON, NOON, NOON + MINUTE - EPSILON).slots
    assert list(due_slots(plan, NOON, NOON, NOON + MINUTE).slots) == [NOON + MINUTE]
    assert not due_slots(plan, NOON, NOON + MINUTE, NOON + MINUTE).slots
    assert list(due_slots(plan, NOON, NOON + MINUTE - EPSILON, NOON + MINUTE).slots) == [NOON + MINUTE]
    assert list(due_slots(plan, NOON, NOON + MINUTE, NOON + 2 * MINUTE).slots) == [NOON + 2 * MINUTE]


@pytest.mark.parametrize("step", [0.000003, 0.1, 1 / 3, 7, 1000.000001])
@pytest.mark.parametrize("passed", [0, 1, 3, 99_999, 3_000_000])
def test_interval_has_neither_gaps_nor_doubles(step: float, passed: int) -> None:
    """From just before, at and just after a slot the next one is the same that counting would give."""
    every = timedelta(seconds=step)
    plan = schedule(every)
    slot = NOON - 100 * 365 * DAY + passed * every
    anchor = NOON - 100 * 365 * DAY
    for after, first in ((slot - EPSILON, slot), (slot, slot + every), (slot + EPSILON, slot + every)):
        due = due_slots(plan, anchor, after, first)
        assert list(due.slots) == [first]
        assert not due_slots(plan, anchor, after, first - EPSILON).slots


def test_nothing_is_due_before_a_future_anchor() -> None:
    """The first slot is the anchor itself if that is what is wanted."""
    plan = schedule(HOUR)
    anchor = NOON + DAY
    assert not due_slots(plan, anchor, anchor - EPSILON, NOON).slots
    assert list(due_slots(plan, anchor, anchor - EPSILON, anchor).slots) == [anchor]


def test_clock_set_back_makes_no_slot_due_again() -> None:
    """Of no kind of schedule."""
    assert not due_slots(schedule(SECOND), NOON, NOON + HOUR, NOON + MINUTE).slots
    every_minute = crontab(app=APPS["UTC"])
    assert not due_slots(every_minute, NOON, NOON + HOUR, NOON + MINUTE).slots


def test_century_of_microseconds_is_decided_without_a_walk() -> None:
    plan = schedule(EPSILON)
    due = due_slots(plan, NOON - 36_500 * DAY, NOON - 36_500 * DAY, NOON)
    assert len(due.slots) == 36_500 * DAY // EPSILON
    assert (due.slots[0], due.slots[-1]) == (NOON - 36_500 * DAY + EPSILON, NOON)
    skipped, claimed = decide(due, Policy(), NOON)
    assert (skipped.count, claimed.count) == (36_500 * DAY // EPSILON - 1, 1)
    assert (skipped.last, claimed.first) == (NOON - EPSILON, NOON)
    expired, missed, newest = decide(due, Policy(misfire=Misfire.SKIP), NOON)
    assert (expired.count + missed.count + newest.count, newest.first) == (len(due.slots), NOON)
    assert missed.first == NOON - 10 * SECOND
    assert len(decide(due, Policy(misfire=Misfire.ALL), NOON)) == MOST_RUNS


def test_only_plain_schedules_count_as_intervals() -> None:
    """A subclass, or one that follows the clock, may mean something else."""

    class Own(schedule):
        """Somebody's own."""

    assert interval_of(schedule(MINUTE)) == MINUTE
    assert interval_of(schedule(90.5)) == timedelta(seconds=90.5)
    assert interval_of(Own(MINUTE)) is None
    assert interval_of(schedule(MINUTE, relative=True)) is None
    assert interval_of(schedule(timedelta(0))) is None
    assert interval_of(crontab()) is None
    assert interval_of(solar("sunset", 0, 0)) is None


def test_ticks_behave_like_a_list() -> None:
    """Although only the ends are known."""
    ticks = Ticks(NOON, MINUTE, 5)
    listed = [NOON + n * MINUTE for n in range(5)]
    assert list(ticks) == listed
    assert (ticks[0], ticks[-1], ticks[-5]) == (listed[0], listed[-1], listed[0])
    for index in (5, -6):
        with pytest.raises(IndexError):
            ticks[index]
    for start, stop in itertools.product((None, 0, 1, 4, 5, 9, -2), repeat=2):
        assert list(ticks[start:stop]) == listed[start:stop]
    assert not Ticks(NOON, MINUTE, 0)


# Crontabs, and both days a year when clocks in Berlin are changed: 2026-03-29 02:00 and 2026-10-25 03:00.


@pytest.mark.parametrize(
    ("plan", "after", "slots"),
    [
        (
            crontab(0, 12),
            "2026-03-27 12:00",
            ["2026-03-28 12:00", "2026-03-29 12:00", "2026-03-30 12:00"],
        ),
        (
            crontab(0, 12),
            "2026-10-23 12:00",
            ["2026-10-24 12:00", "2026-10-25 12:00", "2026-10-26 12:00"],
        ),
        (crontab(0, 0), "2026-03-28 00:00", ["2026-03-29 00:00", "2026-03-30 00:00"]),
        (crontab(0, 3), "2026-03-28 03:00", ["2026-03-29 03:00", "2026-03-30 03:00"]),
        (crontab(0, 3), "2026-10-24 03:00", ["2026-10-25 03:00", "2026-10-26 03:00"]),
        (
            crontab(0, 9, day_of_week="mon"),
            "2026-10-18 00:00",
            ["2026-10-19 09:00", "2026-10-26 09:00", "2026-11-02 09:00"],
        ),
        (
            crontab(0, 9, day_of_week="mon-fri"),
            "2026-03-27 09:00",
            ["2026-03-30 09:00", "2026-03-31 09:00"],
        ),
        (
            crontab(30, 4, day_of_month=1),
            "2026-02-01 04:30",
            ["2026-03-01 04:30", "2026-04-01 04:30", "2026-05-01 04:30"],
        ),
        (
            crontab(0, 0, day_of_month=31),
            "2026-01-01 00:00",
            ["2026-01-31 00:00", "2026-03-31 00:00", "2026-05-31 00:00", "2026-07-31 00:00", "2026-08-31 00:00"],
        ),
        (
            crontab(0, 12, day_of_month=29, month_of_year=2),
            "2026-01-01 00:00",
            ["2028-02-29 12:00", "2032-02-29 12:00"],
        ),
        (
            crontab("*/30", "8,20"),
            "2026-01-15 08:10",
            ["2026-01-15 08:30", "2026-01-15 20:00", "2026-01-15 20:30", "2026-01-16 08:00"],
        ),
    ],
)
def test_crontab_follows_the_clock_of_its_zone(plan: crontab, after: str, slots: list[str]) -> None:
    """Whatever the offset is before and after."""
    assert walk(plan, berlin(after), len(slots)) == slots


def test_noon_stays_noon_when_clocks_change() -> None:
    """From one noon to the next 23 hours pass, or 25."""
    noon = crontab(0, 12, app=APPS["Europe/Berlin"])
    assert next_slot(noon, datetime(2026, 3, 28, 11, tzinfo=UTC)) == datetime(2026, 3, 29, 10, tzinfo=UTC)
    assert next_slot(noon, datetime(2026, 10, 24, 10, tzinfo=UTC)) == datetime(2026, 10, 25, 11, tzinfo=UTC)


def test_crontab_in_a_skipped_hour_is_due_an_hour_later() -> None:
    """Celery's own rule: 02:30 does not exist on that day. Every hour that exists has its slot."""
    assert walk(crontab(30, 2), berlin("2026-03-27 12:00"), 3) == [
        "2026-03-28 02:30",
        "2026-03-29 03:30",
        "2026-03-30 02:30",
    ]
    assert walk(crontab(0), berlin("2026-03-29 00:00"), 3) == [
        "2026-03-29 01:00",
        "2026-03-29 03:00",
        "2026-03-29 04:00",
    ]
    assert walk(crontab("*/20"), berlin("2026-03-29 01:20"), 3) == [
        "2026-03-29 01:40",
        "2026-03-29 03:00",
        "2026-03-29 03:20",
    ]


def test_crontab_in_a_repeated_hour_is_due_the_first_time_only() -> None:
    """Celery's own rule: it continues with the next hour that the clock has not shown yet."""
    assert walk(crontab(30, 2), berlin("2026-10-24 12:00"), 2) == ["2026-10-25 02:30", "2026-10-26 02:30"]
    assert walk(crontab(0), berlin("2026-10-25 00:30"), 4) == [
        "2026-10-25 01:00",
        "2026-10-25 02:00",
        "2026-10-25 03:00",
        "2026-10-25 04:00",
    ]
    assert walk(crontab("*/20"), berlin("2026-10-25 01:40"), 5) == [
        "2026-10-25 02:00",
        "2026-10-25 02:20",
        "2026-10-25 02:40",
        "2026-10-25 03:00",
        "2026-10-25 03:20",
    ]


@pytest.mark.parametrize("plan", [crontab(), crontab("*/20"), crontab(30)])
def test_crontab_asked_in_a_repeated_hour_has_a_later_slot(plan: Any) -> None:
    """Celery itself would send it again and again."""
    plan.app = APPS["Europe/Berlin"]
    now = datetime(2026, 10, 25, 1, 5, tzinfo=UTC)
    slot = next_slot(plan, now)
    assert slot is not None
    assert slot > now
    told = as_told(plan, now)
    assert (told.fold, told.astimezone(UTC)) == (0, datetime(2026, 10, 25, 1, tzinfo=UTC) - EPSILON)


def test_each_day_of_a_year_has_one_noon() -> None:
    noon = crontab(0, 12, app=APPS["Europe/Berlin"])
    after = berlin("2025-12-31 12:00")
    due = due_slots(noon, after, after, berlin("2026-12-31 12:00"))
    assert [slot.astimezone(BERLIN).replace(tzinfo=None) for slot in due.slots] == [
        datetime(2026, 1, 1, 12) + n * DAY  # noqa: DTZ001 - what the clock shows
        for n in range(365)
    ]


def test_crontab_with_its_own_zone_ignores_the_app_zone() -> None:
    """As django-celery-beat has them."""
    noon = TzAwareCrontab(minute="0", hour="12", tz=ZoneInfo("Asia/Kathmandu"), app=APPS["Europe/Berlin"])
    assert next_slot(noon, NOON) == datetime(2026, 1, 16, 6, 15, tzinfo=UTC)
    in_berlin = TzAwareCrontab(minute="0", hour="12", tz=BERLIN, app=APPS["UTC"])
    assert next_slot(in_berlin, datetime(2026, 3, 28, 11, tzinfo=UTC)) == datetime(2026, 3, 29, 10, tzinfo=UTC)


def test_next_slot_does_not_depend_on_the_zone_of_the_question() -> None:
    """An instant is one."""
    noon = crontab(0, 12, app=APPS["Europe/Berlin"])
    for zone in ("UTC", "Asia/Kathmandu", "America/New_York", "Europe/Berlin"):
        after = datetime(2026, 3, 28, 11, 30, tzinfo=UTC).astimezone(ZoneInfo(zone))
        assert next_slot(noon, after) == datetime(2026, 3, 29, 10, tzinfo=UTC)


def test_schedule_is_unchanged_after_a_question() -> None:
    """It is asked with a clock of our own; other callers get an answer for the present."""
    plan: Any = crontab(app=APPS["UTC"])
    before = dict(plan.__dict__)
    assert next_slot(plan, NOON) == NOON + MINUTE
    assert {name: value for name, value in plan.__dict__.items() if name in before} == before
    assert plan.nowfun is None


# Other schedules


def test_solar_schedule_is_due_at_the_event() -> None:
    """At the instant that Celery would wait for."""
    sunset: Any = solar("sunset", 52.5, 13.4, app=APPS["UTC"])
    slots = due_slots(sunset, NOON, NOON, NOON + 3 * DAY).slots
    assert len(slots) == 3
    for day, slot in enumerate(slots):
        assert timedelta(hours=3) < slot - (NOON + day * DAY) < timedelta(hours=4)
        # The search for it is precise to some milliseconds.
        setting = sunset.cal.next_setting(sunset.ephem.Sun(), start=slot - HOUR).datetime().replace(tzinfo=UTC)
        assert abs(setting - slot) < SECOND
    assert not due_slots(sunset, NOON, slots[-1], NOON + 3 * DAY).slots


def test_relative_interval_is_due_at_full_hours_and_days() -> None:
    """Of the app's zone, not counted from anywhere."""
    after = berlin("2026-01-15 10:30")
    assert walk(schedule(HOUR, relative=True), after, 2) == ["2026-01-15 11:00", "2026-01-15 12:00"]
    assert walk(schedule(DAY, relative=True), after, 2) == ["2026-01-16 00:00", "2026-01-17 00:00"]
    hourly = schedule(HOUR, relative=True, app=APPS["UTC"])
    assert list(due_slots(hourly, NOON - 7 * MINUTE, NOON - MINUTE, NOON + MINUTE).slots) == [NOON]


def test_clocked_schedule_is_due_once() -> None:
    """In whatever zone its instant was given."""

    class Clocked(BaseSchedule):
        """As the schedulers with a database have it."""

        clocked_time = NOON.astimezone(BERLIN)

    once = Clocked()
    assert not due_slots(once, NOON, NOON - DAY, NOON - EPSILON).slots
    for now in (NOON, NOON + DAY):
        due = due_slots(once, NOON, NOON - DAY, now)
        assert list(due.slots) == [NOON]
        assert due.slots[0].tzinfo is UTC
        assert due.complete
    assert not due_slots(once, NOON, NOON, NOON + DAY).slots


@pytest.mark.parametrize("left", [timedelta(0), None, -HOUR])
def test_schedule_without_a_next_instant_has_no_slot(left: timedelta | None) -> None:
    """Nothing is due of it that could be told in advance."""

    class Aimless(BaseSchedule):
        """Is never due later than it was."""

        def remaining_estimate(self, last_run_at: datetime) -> timedelta:
            return left  # type: ignore[return-value]

    assert next_slot(Aimless(), NOON) is None
    assert not due_slots(Aimless(), NOON, NOON, NOON + DAY).slots


# A walk that is cut short


@pytest.mark.parametrize("total", [9, 10, 11, 20, 35])
@pytest.mark.parametrize("misfire", list(Misfire))
def test_long_walk_in_pieces_leaves_no_gap(misfire: Misfire, total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces, the newest slot is run."""
    monkeypatch.setattr("celery_pgleader.beat.slots.LONGEST_WALK", 10)
    monkeypatch.setattr("celery_pgleader.beat.slots.MOST_RUNS", 4)
    plan = crontab(app=APPS["UTC"])
    now = NOON + total * MINUTE
    after, stretches = NOON, list[Stretch]()
    while (due := due_slots(plan, NOON, after, now)).slots:
        assert len(due.slots) <= 10
        piece = decide(due, Policy(misfire=misfire), now)
        assert piece[0].first == after + MINUTE
        assert sum(stretch.state == "claimed" for stretch in piece) <= 4
        after = piece[-1].last
        stretches += piece
    assert after == now
    assert sum(stretch.count for stretch in stretches) == total
    assert stretches[-1] == Stretch(now, now, 1, "claimed")
    claimed = [stretch for stretch in stretches if stretch.state == "claimed"]
    assert len(claimed) == (total if misfire is Misfire.ALL else 1)


def test_walk_ends_after_the_longest_piece() -> None:
    """So that a beat does not hang over it."""
    due = due_slots(crontab(app=APPS["UTC"]), NOON, NOON, NOON + 365 * DAY)
    assert (len(due.slots), due.complete) == (LONGEST_WALK, False)


# What becomes of slots


def listed(*minutes: int) -> list[datetime]:
    return [NOON + minute * MINUTE for minute in minutes]


@pytest.mark.parametrize("slots", [listed(1, 2, 3), Ticks(NOON + MINUTE, MINUTE, 3)])
def test_coalesce_claims_the_newest_slot(slots: Sequence[datetime]) -> None:
    """However late, unless there is a grace."""
    now = NOON + 3.5 * MINUTE
    older = Stretch(NOON + MINUTE, NOON + 2 * MINUTE, 2, "skipped", "coalesced")
    newest = Stretch(NOON + 3 * MINUTE, NOON + 3 * MINUTE, 1, "claimed")
    assert decide(Due(slots), Policy(), now) == [older, newest]
    assert decide(Due(slots), Policy(), now + 365 * DAY) == [older, newest]
    assert decide(Due(slots), Policy(misfire_grace=100), now) == [
        Stretch(NOON + MINUTE, NOON + MINUTE, 1, "expired", "misfire_grace"),
        Stretch(NOON + 2 * MINUTE, NOON + 2 * MINUTE, 1, "skipped", "coalesced"),
        newest,
    ]
    assert decide(Due(slots), Policy(misfire_grace=10), now) == [
        Stretch(NOON + MINUTE, NOON + 3 * MINUTE, 3, "expired", "misfire_grace")
    ]


@pytest.mark.parametrize("slots", [listed(1, 2, 3), Ticks(NOON + MINUTE, MINUTE, 3)])
def test_all_claims_each_slot_within_its_grace(slots: Sequence[datetime]) -> None:
    """Oldest first."""
    now = NOON + 3.5 * MINUTE
    runs = [Stretch(slot, slot, 1, "claimed") for slot in slots]
    assert decide(Due(slots), Policy(misfire=Misfire.ALL), now) == runs
    assert decide(Due(slots), Policy(misfire=Misfire.ALL, misfire_grace=100), now) == [
        Stretch(NOON + MINUTE, NOON + MINUTE, 1, "expired", "misfire_grace"),
        *runs[1:],
    ]


@pytest.mark.parametrize("slots", [listed(1, 2, 3), Ticks(NOON + MINUTE, MINUTE, 3)])
def test_skip_claims_the_newest_slot_if_it_is_hardly_late(slots: Sequence[datetime]) -> None:
    """The others were missed."""
    now = NOON + 3 * MINUTE + 10 * SECOND
    assert decide(Due(slots), Policy(misfire=Misfire.SKIP), now) == [
        Stretch(NOON + MINUTE, NOON + 2 * MINUTE, 2, "expired", "misfire_grace"),
        Stretch(NOON + 3 * MINUTE, NOON + 3 * MINUTE, 1, "claimed"),
    ]
    assert decide(Due(slots), Policy(misfire=Misfire.SKIP), now + EPSILON) == [
        Stretch(NOON + MINUTE, NOON + 3 * MINUTE, 3, "expired", "misfire_grace")
    ]
    assert decide(Due(slots), Policy(misfire=Misfire.SKIP, misfire_grace=3600), now) == [
        Stretch(NOON + MINUTE, NOON + 2 * MINUTE, 2, "skipped", "missed"),
        Stretch(NOON + 3 * MINUTE, NOON + 3 * MINUTE, 1, "claimed"),
    ]


def test_nothing_is_decided_without_slots() -> None:
    """By any policy."""
    for misfire, grace in itertools.product(Misfire, (None, 1.0)):
        policy = Policy(misfire=misfire, misfire_grace=grace)
        assert decide(Due([]), policy, NOON) == []
        assert decide(Due(Ticks(NOON, MINUTE, 0)), policy, NOON) == []


def evenly(count: int) -> Sequence[datetime]:
    return Ticks(NOON, MINUTE, count)


def unevenly(count: int) -> Sequence[datetime]:
    return [NOON + n * n * SECOND for n in range(count)]


@pytest.mark.parametrize("misfire", list(Misfire))
@pytest.mark.parametrize("grace", [None, 0.5, 60.0, 3600.0])
@pytest.mark.parametrize("make", [evenly, unevenly])
@pytest.mark.parametrize("complete", [True, False])
def test_every_slot_gets_one_state(
    misfire: Misfire, grace: float | None, make: Callable[[int], Sequence[datetime]], *, complete: bool
) -> None:
    """In order, without a gap, and none too late is run; with `all` as many as one claim may have."""
    policy = Policy(misfire=misfire, misfire_grace=grace)
    for count, late in itertools.product((1, 2, 3, 101), (0.0, 0.5, 60.0, 4000.0, 1e6)):
        slots = list(make(count))
        now = slots[-1] + timedelta(seconds=late)
        stretches = decide(Due(make(count), complete), policy, now)
        ends: dict[datetime, Stretch] = {}
        for stretch in stretches:
            covered = [slot for slot in slots if stretch.first <= slot <= stretch.last]
            assert (covered[0], covered[-1], len(covered)) == (stretch.first, stretch.last, stretch.count)
            assert not ends.keys() & set(covered)
            ends |= dict.fromkeys(covered, stretch)
        assert list(ends) == slots[: len(ends)], "in order, from the oldest on"
        runs = [slot for slot, stretch in ends.items() if stretch.state == "claimed"]
        on_time = [slot for slot in slots if (now - slot).total_seconds() <= policy.grace]
        if misfire is Misfire.ALL:
            assert runs == on_time[:MOST_RUNS]
            assert len(ends) == len(slots) - len(on_time) + len(runs)
        else:
            assert len(ends) == len(slots)
            assert runs == (on_time[-1:] if complete else [])
        for slot, stretch in ends.items():
            assert (stretch.state == "expired") == (slot not in on_time)
            assert (stretch.state == "claimed") == (stretch.reason is None)
            assert stretch.state != "claimed" or stretch.count == 1


def test_left_out_slots_are_skipped() -> None:
    """What is not run anyway keeps its reason."""
    expired = Stretch(NOON, NOON + MINUTE, 2, "expired", "misfire_grace")
    run = Stretch(NOON + HOUR, NOON + HOUR, 1, "claimed")
    skipped = Stretch(NOON + HOUR, NOON + HOUR, 1, "skipped", "overlap")
    assert left_out([expired, run], "overlap") == [expired, skipped]
    assert left_out([], "overlap") == []


# Task ids


def test_task_id_is_the_same_for_ever() -> None:
    """Leaders of different versions must agree on it."""
    slot = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    assert task_id_of("shop", "tick", slot) == "91b70b16-ecec-5c5f-be5b-2ffb62fe860d"


def test_task_id_does_not_depend_on_the_zone() -> None:
    """An instant is one, also while clocks are changed."""
    slot = datetime(2026, 10, 25, 1, 30, 0, 123456, tzinfo=UTC)
    ids = {task_id_of("shop", "tick", slot.astimezone(zone)) for zone in (UTC, BERLIN, timezone(5 * HOUR))}
    assert len(ids) == 1


def test_task_id_differs_by_election_entry_and_slot() -> None:
    """Also where the clock shows the same twice."""
    first, second = berlin("2026-10-25 02:30"), berlin("2026-10-25 02:30*")
    assert second - first == HOUR
    slots = [first, second, first + EPSILON]
    assert len({task_id_of(*words, slot) for words in (("a", "b"), ("b", "a"), ("ab", "")) for slot in slots}) == 9
    assert task_id_of("shop", "tick", first.astimezone(BERLIN)) != task_id_of("shop", "tick", second.astimezone(BERLIN))
