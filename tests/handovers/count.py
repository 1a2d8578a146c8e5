"""What became of every slot: read from the ledger and from the messages, by somebody who made none of the faults."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg

from tests.handovers.app import LONG

STEPS = {"second": timedelta(seconds=1), "minute": timedelta(minutes=1), "long": timedelta(seconds=LONG)}


@dataclass(frozen=True)
class Message:
    """A message that reached the broker."""

    task_id: str
    entry: str
    slot: datetime
    term: int


@dataclass
class Count:
    """Slots by what became of them.

    Attributes:
        due: slots that were due.
        published: slots of which a message reached the broker.
        skipped: slots left out, with a reason.
        expired: slots that were too late, with a reason.
        unaccounted: slots that were due, and of which the ledger knows nothing.
        unsettled: slots that were claimed, and of which nothing else is known.
        lost: slots that count as published, and of which no message came.
        duplicates: slots with messages under more than one task id, or accounted for twice.
        republished: messages that repeat an earlier one, under the same task id.
        terms: how many there were.

    """

    due: int = 0
    published: int = 0
    skipped: int = 0
    expired: int = 0
    unaccounted: int = 0
    unsettled: int = 0
    lost: int = 0
    duplicates: int = 0
    republished: int = 0
    terms: int = 0

    @property
    def faultless(self) -> bool:
        """Whether every slot was accounted for exactly once, and published if it says so."""
        return not (self.unaccounted or self.unsettled or self.lost or self.duplicates)


def count_slots(database: str, election: str, messages: Sequence[Message]) -> Count:
    """Return what became of every slot of an election."""
    ids: dict[tuple[str, datetime], list[str]] = defaultdict(list)
    for message in messages:
        ids[message.entry, message.slot].append(message.task_id)
    count = Count()
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("set time zone 'UTC'")
        (count.terms,) = connection.execute("select term from pgleader.elections").fetchone() or (0,)
        entries = connection.execute(
            "select entry, anchor, since, last_slot from pgleader.entries where election = %s", [election]
        ).fetchall()
        rows = connection.execute(
            "select entry, slot, through, slots, state from pgleader.slots where election = %s", [election]
        ).fetchall()
    accounted: dict[tuple[str, datetime], int] = defaultdict(int)
    for entry, slot, through, number, state in rows:
        for instant in _instants(slot - STEPS[entry], STEPS[entry], slot - STEPS[entry], through):
            accounted[entry, instant] += 1
        if state == "claimed":
            count.unsettled += 1
        elif state == "published":
            count.published += 1
            count.lost += not ids[entry, slot]
        elif state == "skipped":
            count.skipped += number
        else:
            count.expired += number
    for entry, anchor, since, last_slot in entries:
        start = anchor if entry != "minute" else anchor.replace(second=0, microsecond=0)
        for instant in _instants(start, STEPS[entry], since, last_slot or since):
            count.due += 1
            count.unaccounted += not accounted[entry, instant]
    count.duplicates = sum(number > 1 for number in accounted.values())
    count.duplicates += sum(len(set(task_ids)) > 1 for task_ids in ids.values())
    count.duplicates += sum(key not in accounted for key, task_ids in ids.items() if task_ids)
    count.republished = sum(max(0, len(task_ids) - 1) for task_ids in ids.values())
    return count


def _instants(start: datetime, step: timedelta, after: datetime, until: datetime) -> Any:
    instant = start + max(0, (after - start) // step) * step
    while instant <= until:
        if instant > after:
            yield instant
        instant += step
