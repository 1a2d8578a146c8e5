"""Accounts for every slot of a term: claims it in the ledger, has it published, writes down what became of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

import psycopg
from celery.utils.log import get_logger

from celery_pgleader.beat.publisher import Dispatch
from celery_pgleader.beat.slots import (
    CATCH_UP_AFTER,
    OLDER_ARE,
    UTC,
    Due,
    Stretch,
    as_told,
    decide,
    due_slots,
    first_after,
    interval_of,
    left_out,
    task_id_of,
)
from celery_pgleader.config import Config
from celery_pgleader.election import Term
from celery_pgleader.policies import Overlap, policy_of
from celery_pgleader.slot import HEADER, Slot
from celery_pgleader.spans import span
from celery_pgleader.store import Claimed, EntryRecord, Outcome, SlotRow, Superseded

logger = get_logger(__name__)

T = TypeVar("T")

# An entry that is in the schedule is claimed for long before.
OVERDUE_AFTER = timedelta(seconds=10)

ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class TermOver(BaseException):
    """The term that a scheduler was made for is over.

    No `Exception`, because schedulers swallow those.
    """


class LedgerAway(BaseException):
    """The ledger could not be asked; what the last statement has done is not known.

    No `Exception`, because schedulers swallow those.
    """


@dataclass(frozen=True)
class Claim:
    """A slot that is to be published.

    Attributes:
        slot: the slot.
        term: the term in which it was claimed.
        cause: the span in which it was, if there was one.

    """

    slot: datetime
    term: int
    cause: Any = field(default=None, compare=False, repr=False)


class LedgerPort(Protocol):
    """What the schedule of a term needs of a ledger; see `store.Ledger`, which is one."""

    clock_skew: float

    def entries(self) -> dict[str, EntryRecord]:
        """Return what is remembered."""

    def register(self, entries: dict[str, EntryRecord], /) -> None:
        """Remember entries."""

    def retire(self, entries: Iterable[str], /) -> None:
        """Remember that entries are gone."""

    def claim(self, rows: Sequence[SlotRow], records: Mapping[str, EntryRecord], /) -> set[str]:
        """Claim slots; return the entries whose rows were written."""

    def running(self, entries: list[str], /) -> set[str]:
        """Return the entries of which a run is going on."""

    def settle(self, outcomes: Sequence[Outcome], /) -> None:
        """Write down what became of slots."""

    def claimed(self) -> list[Claimed]:
        """Return the slots that were claimed and of which nothing else is known."""

    def prune(self) -> int:
        """Forget a batch of what is old; return how many rows went."""

    def close(self) -> None:
        """End the session."""


class PublisherPort(Protocol):
    """What a keeper of slots needs of a publisher."""

    def put(self, dispatch: Dispatch, /) -> None:
        """Have a slot published."""


class SlotKeeper:
    """Stands between a scheduler, which says what is due, and the ledger, which says what has been."""

    def __init__(
        self,
        config: Config,
        term: Term,
        ledger: LedgerPort,
        publisher: PublisherPort,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Prepare; see `recover` for what to do first.

        Args:
            config: the policies, and the name of the election.
            term: in which slots are claimed.
            ledger: in which.
            publisher: gets what was claimed.
            now: the present, in UTC.

        """
        self._config = config
        self._term = term
        self._ledger = ledger
        self._publisher = publisher
        self.now = now
        self._records: dict[str, EntryRecord] = {}
        # Given to the publisher, and not yet written down as settled.
        self._under_way: set[tuple[str, datetime]] = set()

    def recover(self, find: Callable[[str], Any]) -> None:
        """Read what the ledger knows, and publish what was claimed but, as far as is known, not published.

        Args:
            find: returns an entry by its name, or none.

        """
        self._records = self._ask(self._ledger.entries)
        self.publish_claimed(find)

    def publish_claimed(self, find: Callable[[str], Any]) -> None:
        """Publish what was claimed but, as far as is known, not published."""
        gone = []
        for claimed in self._ask(self._ledger.claimed):
            if (claimed.entry, claimed.slot) in self._under_way:
                continue
            entry = find(claimed.entry)
            if entry is None:
                gone.append(Outcome(claimed.entry, claimed.slot, "expired", "the entry is gone"))
            else:
                self.publish(entry, Claim(claimed.slot, claimed.term))
        if gone:
            self.settle(gone)

    def meet(self, entries: Mapping[str, Any], names: Collection[str] | None = None) -> None:
        """Have entries go on from where the ledger says that they are.

        Args:
            entries: those that the scheduler has now, by name.
            names: of all entries that are in the schedule; none if that is not known.

        """
        now = self.now()
        changed = {}
        for name, entry in entries.items():
            record, known = self._recorded(entry, now), self._records.get(name)
            if record != known:
                changed[name] = replace(record, next_slot=self._next_slot(entry, record))
        if changed:
            self._ask(lambda: self._ledger.register(changed))
            self._records.update(changed)
        missing = [
            name
            for name, record in self._records.items()
            if names is not None and name not in names and not record.retired
        ]
        if missing:
            logger.warning(
                "pgleader: not in this node's schedule, but in the last leader's: %s", ", ".join(sorted(missing))
            )
            self._retire(missing)
        for entry in entries.values():
            self.remind(entry)

    def retire_overdue(self, find: Callable[[str], Any]) -> None:
        """Retire entries whose slots nobody comes to, since they are gone or disabled.

        Some schedulers, such as RedBeat, show what is due only, and not what was removed.
        """
        overdue = self.now() - OVERDUE_AFTER
        waiting = [
            name
            for name, record in self._records.items()
            if record.next_slot is not None and record.next_slot < overdue and not record.retired
        ]
        entries = {name: find(name) for name in waiting}
        gone = [name for name, entry in entries.items() if entry is None or not getattr(entry, "enabled", True)]
        if gone:
            logger.info("pgleader: gone from the schedule, or disabled: %s", ", ".join(sorted(gone)))
            self._retire(gone)

    def remind(self, entry: Any) -> None:
        """Set when an entry was last run, which is what its schedule counts from, to what the ledger says."""
        record = self._records[entry.name]
        last, step = record.accounted_until, interval_of(entry.schedule)
        if step is not None:
            last = record.anchor + (last - record.anchor) // step * step
        # Celery before 5.7, and relative intervals, follow the clock of the zone in which they are told of it.
        entry.last_run_at = last if step is not None else as_told(entry.schedule, last)

    def claim(self, entries: Iterable[Any], *, whatever_is_due: bool = False) -> dict[str, list[Claim]]:
        """Claim the slots of entries that are due, in one round trip.

        Args:
            entries: those that the scheduler says are due.
            whatever_is_due: where no slot is due, the present is taken for one.

        Returns:
            What is to be published, by the names of those entries whose slots are accounted for now. The others wait
            for a run of theirs to end, or were accounted for by somebody else.

        """
        asked = {entry.name: entry for entry in entries}
        claims, refused = self._claim(asked, whatever_is_due=whatever_is_due)
        if not refused:
            return claims
        before = dict(self._records)
        self._records |= self._ask(self._ledger.entries)
        switched = {name for name in refused if self._records[name].paused != before[name].paused}
        if switched:
            logger.info("pgleader: paused or resumed: %s", ", ".join(sorted(switched)))
            again, still = self._claim({name: asked[name] for name in switched}, whatever_is_due=whatever_is_due)
            claims |= again
            refused = refused - switched | still
        if refused:
            logger.warning("pgleader: accounted for already: %s", ", ".join(sorted(refused)))
        return claims

    def _claim(self, entries: Mapping[str, Any], *, whatever_is_due: bool) -> tuple[dict[str, list[Claim]], set[str]]:
        """Claim once; return what is to be published, and the names of those whose claims were refused."""
        now = self.now()
        decided: dict[str, list[Stretch]] = {}
        records: dict[str, EntryRecord] = {}
        for name, entry in entries.items():
            record = self._records[name]
            due = self._due(entry, record, now, whatever_is_due=whatever_is_due)
            stretches = decide(due, policy_of(self._config.schedule, name), now)
            decided[name] = left_out(stretches, "paused") if record.paused else stretches
            if stretches:
                last = stretches[-1].last
                records[name] = replace(record, last_slot=last, next_slot=first_after(due, last))
        self._leave_out_overlaps(decided)
        rows = [self._row(name, stretch) for name, stretches in decided.items() for stretch in stretches]
        accepted, cause = self._write_claims(rows, records) if rows else (set(), None)
        refused = {name for name, stretches in decided.items() if stretches} - accepted
        claims = {}
        for name in decided.keys() - refused:
            stretches = decided[name]
            if stretches:
                self._records[name] = records[name]
            claims[name] = [Claim(s.first, self._term.number, cause) for s in stretches if s.state == "claimed"]
        return claims, refused

    def _write_claims(self, rows: list[SlotRow], records: Mapping[str, EntryRecord]) -> tuple[set[str], Any]:
        attributes = {"election": self._config.election, "term": self._term.number, "slots": len(rows)}
        with span("claim", attributes) as cause:
            return self._ask(lambda: self._ledger.claim(rows, records)), cause

    def _due(self, entry: Any, record: EntryRecord, now: datetime, *, whatever_is_due: bool) -> Due:
        try:
            due = due_slots(entry.schedule, record.anchor, record.accounted_until, now)
            says_so = not due.slots and (whatever_is_due or entry.is_due()[0])
        except Exception:
            # A schedule that can say no more than whether it is due.
            logger.debug("pgleader: cannot calculate the slots of %s", entry.name, exc_info=True)
            due, says_so = Due([]), True
        # A schedule with a mind of its own: it is due because it says so.
        return Due([now]) if says_so and now > record.accounted_until else due

    def _leave_out_overlaps(self, decided: dict[str, list[Stretch]]) -> None:
        """Have the slots of entries of which a run is going on skipped, or wait, by their policy."""
        overlaps = {name: policy_of(self._config.schedule, name).overlap for name in decided}
        singletons = [name for name, overlap in overlaps.items() if overlap is not Overlap.ALLOW]
        if not singletons:
            return
        for name in self._ask(lambda: self._ledger.running(singletons)):
            if overlaps[name] is Overlap.WAIT:
                del decided[name]
            else:
                decided[name] = left_out(decided[name], "overlap")

    def publish(self, entry: Any, claim: Claim) -> None:
        """Hand a claimed slot to the publisher."""
        self._under_way.add((entry.name, claim.slot))
        policy = policy_of(self._config.schedule, entry.name)
        late = (self.now() - claim.slot).total_seconds()
        slot = Slot(
            election=self._config.election,
            entry=entry.name,
            at=claim.slot.astimezone(UTC),
            term=claim.term,
            catch_up=late > CATCH_UP_AFTER,
            deduplicate=policy.deduplicate,
            overlap=policy.overlap.value,
        )
        # Not by copy(): entries of some schedulers pickle, and so copy, in ways of their own.
        sent = object.__new__(type(entry))
        sent.__dict__.update(entry.__dict__)
        options = entry.options or {}
        sent.options = {
            **options,
            "task_id": task_id_of(self._config.election, entry.name, claim.slot),
            "headers": {**(options.get("headers") or {}), HEADER: slot.to_header()},
        }
        self._publisher.put(
            Dispatch(
                entry.name,
                claim.slot,
                sent,
                expires_at=claim.slot.timestamp() + policy.grace,
                older_are=OLDER_ARE.get(policy.misfire),
                cause=claim.cause,
            )
        )

    def settle(self, outcomes: list[Outcome]) -> None:
        """Write down what became of claimed slots."""
        self._ask(lambda: self._ledger.settle(outcomes))
        self._under_way -= {(outcome.entry, outcome.slot) for outcome in outcomes}

    def runs_the_schedule(self) -> bool:
        """Tell whether leaders have come to a slot, and the schedule is not paused, as far as is known."""
        return any(record.last_slot is not None and not record.paused for record in self._records.values())

    def prune(self) -> int:
        """Forget a batch of what is old; return how many rows went."""
        return self._ask(self._ledger.prune)

    def _retire(self, names: list[str]) -> None:
        self._ask(lambda: self._ledger.retire(names))
        for name in names:
            self._records[name] = replace(self._records[name], retired=True)

    def _next_slot(self, entry: Any, record: EntryRecord) -> datetime | None:
        after = record.accounted_until
        try:
            return due_slots(entry.schedule, record.anchor, after, after).next
        except Exception:  # noqa: BLE001 - a schedule that can say no more than whether it is due
            return None

    def _row(self, name: str, stretch: Stretch) -> SlotRow:
        claimed = stretch.state == "claimed"
        task_id = task_id_of(self._config.election, name, stretch.first) if claimed else None
        return SlotRow(name, stretch.first, stretch.last, stretch.count, stretch.state, stretch.reason, task_id)

    def _recorded(self, entry: Any, now: datetime) -> EntryRecord:
        """Return an entry's record as it should be."""
        schedule, step = describe(entry.schedule), interval_of(entry.schedule)
        known = self._records.get(entry.name)
        if known is None:
            anchor, since = _beginning(entry, now)
            return EntryRecord(entry.task, schedule, anchor, since)
        record = replace(known, task=entry.task, schedule=schedule, retired=False)
        if schedule != known.schedule:
            # As in Celery a new interval is counted from the last run; a new crontab knows nothing of the past.
            record = (
                replace(record, anchor=known.accounted_until)
                if step is not None and known.schedule.startswith("every ")
                else replace(record, anchor=now, since=now)
            )
        return replace(record, since=max(now, record.since)) if known.retired else record

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except Superseded:
            raise TermOver from None
        except psycopg.Error as error:
            raise LedgerAway(str(error).strip()) from error


def describe(schedule: Any) -> str:
    """Return a schedule in words that change if, and only if, its slots do."""
    step = interval_of(schedule)
    if step is not None:
        return f"every {step}"
    zone = getattr(schedule, "tz", None)
    try:
        words = repr(schedule)
    except Exception:  # noqa: BLE001 - a schedule of somebody's own may lack what Celery's repr shows
        words = type(schedule).__qualname__
    return " ".join([*ADDRESS.sub("", words).split(), *([f"({zone})"] if zone else [])])


def _beginning(entry: Any, now: datetime) -> tuple[datetime, datetime]:
    """Return from where the slots of a new entry are counted, and after which they are due."""
    # Entries of the schedulers with a database may have a time to start at.
    start = getattr(getattr(entry, "model", None), "start_time", None)
    if start is not None:
        start = start.astimezone(UTC) if start.tzinfo else start.replace(tzinfo=UTC)
        return start, max(start, now) - timedelta(microseconds=1) if start > now else now
    last = entry.last_run_at
    if last is None:
        # RedBeat's way to say that an entry is to run at once for the first time.
        return now, now - timedelta(microseconds=1)
    last = last.astimezone(UTC) if last.tzinfo else last.replace(tzinfo=UTC)
    # What was run before there was a ledger counts; a scheduler's way to say "never" does not.
    began = min(last, now) if last > now - timedelta(days=3650) else now
    return began, began
