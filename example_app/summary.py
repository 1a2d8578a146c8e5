"""What the demo counts: from rows that the tasks wrote while they ran, and from the ledger."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import psycopg

CRASH, TERM = "kill -9", "TERM"
SLOTS = "select extract(epoch from slot)::float, state from pgleader.slots where entry = 'report'"
FACTS = """
select kind, key, node, run, term, extract(epoch from sent_at)::float, sent_by, extract(epoch from at)::float, leader
  from facts order by id
"""


@dataclass(frozen=True)
class Fact:
    """A run of a task; see `schema.sql`. Times are seconds since the epoch, by the clock of this one host."""

    kind: str
    key: str
    node: str
    run: str | None
    term: int | None
    sent_at: float
    sent_by: int
    at: float
    leader: str | None


@dataclass(frozen=True)
class SlotRow:
    """A row of the ledger: when the slot was due, in seconds since the epoch, and what became of it."""

    at: float
    state: str


@dataclass(frozen=True)
class Fault:
    """What was done to a leader.

    Attributes:
        kind: the signal.
        node: who led.
        pid: its process.
        at: when, in seconds since the epoch.
        lock_ms: milliseconds until another session held the lock; none if that never happened.

    """

    kind: str
    node: str
    pid: int
    at: float
    lock_ms: float | None


@dataclass(frozen=True)
class Failover:
    """What came of it: `first_tick_ms` is the time until a tick that another process had sent was run."""

    fault: str
    lock_ms: float | None
    first_tick_ms: float | None


@dataclass(frozen=True)
class Ticks:
    """The schedule's balance."""

    expected: int
    published: int
    ran: int
    duplicates: int
    missed: int


@dataclass(frozen=True)
class Notifications:
    """The orders' balance."""

    sent: int
    handled: int
    duplicates: int
    lost: int


@dataclass(frozen=True)
class LeaderOnly:
    """The leader-only task's balance."""

    sent: int
    ran: int
    ran_off_leader: int


@dataclass(frozen=True)
class Summary:
    """The whole demo in figures."""

    workers: int
    seconds: float
    failovers: tuple[Failover, ...]
    ticks: Ticks
    notifications: Notifications
    leader_only: LeaderOnly

    def as_json(self) -> str:
        """Return the summary as a JSON object."""
        return json.dumps(asdict(self), indent=2)


def read_facts(db: psycopg.Connection[tuple[object, ...]]) -> list[Fact]:
    """Return all that tasks have recorded."""
    return [Fact(*row) for row in db.execute(FACTS)]  # type: ignore[arg-type]  # as the statement says


def read_slots(db: psycopg.Connection[tuple[object, ...]]) -> list[SlotRow]:
    """Return what the ledger knows of the report's slots."""
    return [SlotRow(*row) for row in db.execute(SLOTS)]  # type: ignore[arg-type]  # as the statement says


def count_ticks(slots: Iterable[SlotRow], facts: Iterable[Fact], period: float, closed_at: float) -> Ticks:
    """Count the ticks of a schedule by its slots, which lie `period` seconds apart.

    Expected are all slots from the first in the ledger to closing time, whether the ledger knows of them or not. What
    is expected and was not published is missed. `duplicates` counts runs beyond the first of a slot, and `ran` the
    slots of which a run is on record: a message that the broker loses was published and does not run.
    """
    rows = [row for row in slots if row.at <= closed_at]
    first = min((row.at for row in rows), default=closed_at)
    expected = math.floor((closed_at - first) / period) + 1 if rows else 0
    published = sum(row.state == "published" for row in rows)
    # Without those that were run by hand, and those that were due when the shop had closed.
    kept = {str(row.at) for row in rows}
    runs = Counter(fact.key for fact in facts if fact.kind == "tick" and fact.key in kept)
    return Ticks(
        expected=expected,
        published=published,
        ran=len(runs),
        duplicates=runs.total() - len(runs),
        missed=expected - published,
    )


def count_notifications(facts: Iterable[Fact], sent: int) -> Notifications:
    """Count the orders that the database holds against those that were handled, and the runs beyond the first."""
    runs = [fact.key for fact in facts if fact.kind == "order"]
    handled = len(set(runs))
    return Notifications(sent=sent, handled=handled, duplicates=len(runs) - handled, lost=sent - handled)


def count_leader_only(facts: Iterable[Fact], sent: int) -> LeaderOnly:
    """Count the leader-only tasks that ran, and the runs on a node that did not hold the lock at that moment."""
    runs = [fact for fact in facts if fact.kind == "restock"]
    off_leader = sum(fact.node != fact.leader for fact in runs)
    return LeaderOnly(sent=sent, ran=len({fact.key for fact in runs}), ran_off_leader=off_leader)


def judge(fault: Fault, facts: Iterable[Fact]) -> Failover:
    """Find the first tick of another leader after a fault."""
    runs = (f.at for f in facts if f.kind == "tick" and f.sent_at >= fault.at and f.sent_by != fault.pid)
    first = min(runs, default=None)
    first_tick_ms = None if first is None else round((first - fault.at) * 1000, 1)
    return Failover(fault.kind, fault.lock_ms, first_tick_ms)


def shortcomings(faults: Sequence[Fault], facts: Sequence[Fact]) -> list[str]:
    """Return what speaks against "the leader changed and work went on"; nothing if it did."""
    if not faults:
        return ["no leader was killed"]
    found = [f"nobody took over from {fault.node} after {fault.kind}" for fault in faults if fault.lock_ms is None]
    last = faults[-1]
    for kind, what in (("tick", "tick"), ("order", "order"), ("restock", "leader-only task")):
        if not any(f.kind == kind and f.sent_at > last.at and f.sent_by != last.pid for f in facts):
            found.append(f"no {what} was handled after the last failover")
    return found


def describe(summary: Summary) -> str:
    """Return the summary in a few lines of text."""
    ticks, orders, leader_only = summary.ticks, summary.notifications, summary.leader_only
    lines = [f"In {summary.seconds:.0f} seconds, {summary.workers} workers:"]
    for kind in (CRASH, TERM):
        some = [failover for failover in summary.failovers if failover.fault == kind]
        if some:
            lock = _middle(failover.lock_ms for failover in some)
            tick = _middle(failover.first_tick_ms for failover in some)
            times = "once" if len(some) == 1 else f"{len(some)} times"
            lines.append(f"  {kind:<14} {times}; in the median {lock} to the lock, {tick} to the next tick")
    ran = f"{leader_only.sent} sent, {leader_only.ran} ran, {leader_only.ran_off_leader} off the leader"
    published = f"{ticks.expected} expected, {ticks.published} published, {ticks.ran} ran"
    handled = f"{orders.sent} sent, {orders.handled} handled"
    lines += [
        f"  ticks          {published}, {ticks.duplicates} duplicates, {ticks.missed} missed",
        f"  notifications  {handled}, {orders.duplicates} duplicates, {orders.lost} lost",
        f"  leader-only    {ran}",
    ]
    return "\n".join(lines)


def _middle(times: Iterable[float | None]) -> str:
    known = [time for time in times if time is not None]
    return f"{median(known):.0f} ms" if known else "never"
