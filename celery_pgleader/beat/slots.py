"""Which slots of an entry are due, and what becomes of each. Nothing here reads a clock or talks to anybody.

A slot is a due instant of a schedule entry, in UTC.

Intervals are counted from the entry's anchor, so that they neither drift nor begin anew at a deploy. Every other
schedule is asked for its next instant, again and again, as if it were the time of the last one. So crontabs follow
the clock of their time zone, and Celery's own idea of what that means on the two days a year when it is changed.
"""

from __future__ import annotations

import math
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, overload

from celery import schedules

from celery_pgleader.policies import Misfire, Policy

UTC = timezone.utc
# So many instants of a crontab are looked at in one go; the rest is dealt with in the next.
LONGEST_WALK = 2_000
# With `misfire = all` so many slots of an entry are claimed in one go.
MOST_RUNS = 100
MOST_CORRECTIONS = 4
# A run that begins later than this after its slot is one that catches up.
CATCH_UP_AFTER = 10.0

# What slots are skipped as since there is a newer one; those that are not listed are not.
OLDER_ARE = {Misfire.COALESCE: "coalesced", Misfire.SKIP: "missed"}

NAMESPACE = uuid.UUID("9a1f3f0e-6c8f-5d3b-9f38-70676c656164")


@dataclass(frozen=True)
class Due:
    """Slots that are due.

    Attributes:
        slots: oldest first.
        complete: there are no later ones that are due as well.
        next: the first one after these; none if there is none, or if it is not known.

    """

    slots: Sequence[datetime]
    complete: bool = True
    next: datetime | None = None


@dataclass(frozen=True)
class Stretch:
    """Slots in a row that come to the same end.

    Attributes:
        first: the oldest.
        last: the newest.
        count: how many.
        state: claimed, skipped or expired.
        reason: why, unless they are claimed.

    """

    first: datetime
    last: datetime
    count: int
    state: str
    reason: str | None = None


class Ticks(Sequence[datetime]):
    """Evenly spaced instants, of which there may be very many."""

    def __init__(self, first: datetime, step: timedelta, count: int) -> None:
        """Make `count` instants from `first` on."""
        self._first, self._step, self._count = first, step, count

    def __len__(self) -> int:
        """Return how many there are."""
        return self._count

    @overload
    def __getitem__(self, index: int) -> datetime: ...
    @overload
    def __getitem__(self, index: slice) -> Ticks: ...
    def __getitem__(self, index: int | slice) -> datetime | Ticks:
        """Return an instant, or a part."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(self._count)
            return Ticks(self._first + start * self._step, self._step, max(0, stop - start))
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._first + (index % self._count) * self._step


def due_slots(schedule: Any, anchor: datetime, after: datetime, now: datetime) -> Due:
    """Return the slots that are due.

    Args:
        schedule: Celery's schedule of the entry.
        anchor: from where an interval is counted.
        after: slots up to here are accounted for.
        now: slots after this are not due.

    """
    step = interval_of(schedule)
    if step is not None:
        first = anchor + ((after - anchor) // step + 1) * step
        count = max(0, (now - first) // step + 1)
        return Due(Ticks(first, step, count), next=first + count * step)
    if (once := getattr(schedule, "clocked_time", None)) is not None:
        at = once.astimezone(UTC)
        return Due([at] if after < at <= now else [], next=at if after < at and now < at else None)
    walked: list[datetime] = []
    slot = next_slot(schedule, after)
    while slot is not None and slot <= now:
        if len(walked) == LONGEST_WALK:
            return Due(walked, complete=False, next=slot)
        walked.append(slot)
        slot = next_slot(schedule, slot)
    return Due(walked, next=slot)


def next_slot(schedule: Any, after: datetime) -> datetime | None:
    """Return a schedule's first instant after another, or none if it has none."""
    # A copy with a clock of our own; by __dict__, since schedules pickle, and so copy, in ways of their own.
    asked = object.__new__(type(schedule))
    asked.__dict__.update(schedule.__dict__)
    # Celery before 5.7, and relative intervals, follow the clock of the zone in which they are told of the last time.
    slot, told = after, as_told(schedule, after)
    # Celery subtracts times of the wall clock, which is an hour off when that is changed in between. The instant at
    # which it says that nothing remains is the one at which it would send the entry.
    for _ in range(MOST_CORRECTIONS):
        asked.nowfun = lambda slot=slot: slot
        left = asked.remaining_estimate(told)
        if not left:
            break
        slot += left
    return slot.astimezone(UTC) if slot > after else None


def as_told(schedule: Any, last: datetime) -> datetime:
    """Return when a schedule was last run, as it is to be told: on its own clock, and in no hour that is shown again.

    In such an hour Celery looks for the next instant in the hour that has passed, finds it, and again.
    """
    local = last.astimezone(getattr(schedule, "tz", UTC))
    if not local.fold:
        return local
    # The last instant before clocks were set back.
    early, late = local.replace(fold=0).astimezone(UTC), last
    while late - early > timedelta(microseconds=1):
        middle = early + (late - early) / 2
        early, late = (early, middle) if middle.astimezone(local.tzinfo).fold else (middle, late)
    return early.astimezone(local.tzinfo)


def interval_of(schedule: Any) -> timedelta | None:
    """Return the interval of a schedule that is a plain one."""
    # Subclasses, such as crontab's, have a meaning of their own, and a relative one follows the clock.
    plain = type(schedule) is schedules.schedule and not schedule.relative
    return schedule.run_every if plain and schedule.run_every > timedelta(0) else None


def decide(due: Due, policy: Policy, now: datetime) -> list[Stretch]:
    """Return what becomes of the slots that are due, oldest first, with each run a stretch of its own.

    The last stretch ends where the entry is accounted for then; with `misfire = all` that may be before the newest
    slot, and the rest follows in the next go.
    """
    slots = due.slots
    late = 0 if math.isinf(policy.grace) else bisect_left(slots, now - timedelta(seconds=policy.grace))
    ends = _stretch(slots[:late], "expired", "misfire_grace")
    if policy.misfire is Misfire.ALL:
        return [*ends, *(Stretch(slot, slot, 1, "claimed") for slot in slots[late : late + MOST_RUNS])]
    # Of a walk that was cut short the newest slot is not known yet.
    older = max(late, len(slots) - 1) if due.complete else len(slots)
    ends += _stretch(slots[late:older], "skipped", OLDER_ARE[policy.misfire])
    return [*ends, *_stretch(slots[older:], "claimed", None)]


def left_out(stretches: Iterable[Stretch], reason: str) -> list[Stretch]:
    """Return what becomes of slots of which those that would be run are not."""
    return [
        replace(stretch, state="skipped", reason=reason) if stretch.state == "claimed" else stretch
        for stretch in stretches
    ]


def first_after(due: Due, slot: datetime) -> datetime | None:
    """Return the first slot after one that is due; none if there is none, or if it is not known."""
    later = bisect_right(due.slots, slot)
    return due.slots[later] if later < len(due.slots) else due.next


def task_id_of(election: str, entry: str, slot: datetime) -> str:
    """Return the task id of a slot: the same one, whoever publishes it and how often."""
    return str(uuid.uuid5(NAMESPACE, f"{election}\n{entry}\n{slot.astimezone(UTC).isoformat()}"))


def _stretch(slots: Sequence[datetime], state: str, reason: str | None) -> list[Stretch]:
    return [Stretch(slots[0], slots[-1], len(slots), state, reason)] if slots else []
