"""The leader's own session with the ledger: entries, and what becomes of their slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from celery_pgleader.config import Config
from celery_pgleader.election import Term
from celery_pgleader.postgres import Session
from celery_pgleader.store import sql as statements
from celery_pgleader.store.runs import entry_key
from celery_pgleader.store.session import LONGEST_STATEMENT, open_leaders_session

PRUNE_BATCH = 1_000
BACKLOG_BATCH = 10_000


class Superseded(Exception):
    """The term is not the latest any more: what was to be written was refused."""


@dataclass(frozen=True)
class EntryRecord:
    """What the ledger remembers of a schedule entry.

    Attributes:
        task: name of its task.
        schedule: its schedule, in words.
        anchor: from where its interval is counted.
        since: slots up to here are of no concern.
        last_slot: slots up to here are accounted for; none if there was none yet.
        retired: it was not in the last leader's schedule.
        next_slot: the first slot that is not accounted for; none if there is none, or if it is not known.
        paused: its slots are skipped, by order of an operator.

    """

    task: str
    schedule: str
    anchor: datetime
    since: datetime
    last_slot: datetime | None = None
    retired: bool = False
    next_slot: datetime | None = field(default=None, compare=False)
    paused: bool = False

    @property
    def accounted_until(self) -> datetime:
        """Slots up to here are accounted for, or of no concern."""
        return max(self.since, self.last_slot) if self.last_slot is not None else self.since


@dataclass(frozen=True)
class SlotRow:
    """A claimed slot, or a stretch of slots that are not run.

    Attributes:
        entry: name of the entry.
        slot: the first, or only, slot.
        through: the last.
        count: how many.
        state: claimed, skipped or expired.
        reason: why, unless it is claimed.
        task_id: under which it is published, if it is claimed.

    """

    entry: str
    slot: datetime
    through: datetime
    count: int
    state: str
    reason: str | None
    task_id: str | None


@dataclass(frozen=True)
class Claimed:
    """A slot that was claimed, and of which nothing else is known.

    Attributes:
        entry: name of the entry.
        slot: the slot.
        term: the term in which it was claimed.

    """

    entry: str
    slot: datetime
    term: int


@dataclass(frozen=True)
class Outcome:
    """What became of a claimed slot.

    Attributes:
        entry: name of the entry.
        slot: the slot.
        state: published, skipped or expired.
        reason: why, unless it was published.

    """

    entry: str
    slot: datetime
    state: str
    reason: str | None = None


NO_RECORDS: Mapping[str, EntryRecord] = MappingProxyType({})


class Ledger:
    """What a leader writes down, in a session that is opened when it is first needed.

    After a `psycopg.Error` it is not known whether the last statement was executed; the next one opens a new session.
    """

    def __init__(
        self, config: Config, term: Term, may_act: Callable[[], bool], clock: Callable[[], float] = time.time
    ) -> None:
        """Prepare.

        Args:
            config: where the database is.
            term: for which everything is written; what is written for another is refused.
            may_act: whether the term is still trusted; if not, no answer is waited for.
            clock: seconds since the epoch, on this host.

        """
        self._config = config
        self._term = term
        self._may_act = may_act
        self._clock = clock
        self._session: Session | None = None
        self.clock_skew = 0.0

    def entries(self) -> dict[str, EntryRecord]:
        """Return what is remembered, by the entries' names."""
        return {name: EntryRecord(*rest) for name, *rest in self._execute(statements.ENTRIES)}

    def register(self, entries: dict[str, EntryRecord]) -> None:
        """Remember entries, new or as they are now.

        Raises:
            Superseded: the term is over.

        """
        records = list(entries.values())
        written = self._execute(
            statements.REGISTER,
            entries=list(entries),
            tasks=[record.task for record in records],
            schedules=[record.schedule for record in records],
            anchors=[record.anchor for record in records],
            sinces=[record.since for record in records],
            next_slots=[record.next_slot for record in records],
        )
        if len(written) < len(records):
            raise Superseded

    def retire(self, entries: Iterable[str]) -> None:
        """Remember that entries are in the schedule no more."""
        self._execute(statements.RETIRE, entries=list(entries))

    def claim(self, rows: Sequence[SlotRow], records: Mapping[str, EntryRecord] = NO_RECORDS) -> set[str]:
        """Claim slots, in one round trip.

        Args:
            rows: for each entry everything after what is accounted for, oldest first and without a gap.
            records: of these entries, as they will be; with `paused` as it was when the rows were decided on. An entry
                that is not among them is not paused.

        Returns:
            The names of the entries whose rows were written. For the others something of it, or something later,
            was accounted for before, or they were paused or resumed.

        Raises:
            Superseded: the term is over.

        """
        by_entry: dict[str, list[SlotRow]] = {}
        for row in rows:
            by_entry.setdefault(row.entry, []).append(row)
        ((fences, claimed),) = self._execute(
            statements.CLAIM,
            entries=list(by_entry),
            oldest=[of_entry[0].slot for of_entry in by_entry.values()],
            newest=[of_entry[-1].through for of_entry in by_entry.values()],
            nexts=[records[entry].next_slot if entry in records else None for entry in by_entry],
            paused=[entry in records and records[entry].paused for entry in by_entry],
            runs=[sum(row.state == "claimed" for row in of_entry) for of_entry in by_entry.values()],
            row_entries=[row.entry for row in rows],
            row_slots=[row.slot for row in rows],
            row_throughs=[row.through for row in rows],
            row_counts=[row.count for row in rows],
            row_states=[row.state for row in rows],
            row_reasons=[row.reason for row in rows],
            row_task_ids=[row.task_id for row in rows],
        )
        if not fences:
            raise Superseded
        return set(claimed)

    def running(self, entries: list[str]) -> set[str]:
        """Return of which of these entries, whose runs must not overlap, a run is going on."""
        keys = [entry_key(self._config.election, entry) for entry in entries]
        return {name for (name,) in self._execute(statements.RUNNING, entries=entries, keys=keys)}

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Write down what became of claimed slots."""
        self._execute(
            statements.SETTLE,
            entries=[outcome.entry for outcome in outcomes],
            slots=[outcome.slot for outcome in outcomes],
            states=[outcome.state for outcome in outcomes],
            reasons=[outcome.reason for outcome in outcomes],
        )

    def claimed(self) -> list[Claimed]:
        """Return the slots that were claimed and of which nothing else is known, oldest first."""
        return [Claimed(*row) for row in self._execute(statements.CLAIMED, limit=BACKLOG_BATCH)]

    def prune(self) -> int:
        """Forget a batch of what is older than the retention time; return how many rows went."""
        rows: int = self._run(statements.PRUNE, seconds=self._config.retention, limit=PRUNE_BATCH).rowcount
        return rows

    def close(self) -> None:
        """End the session."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _execute(self, statement: str, **parameters: Any) -> list[Any]:
        cursor = self._run(statement, **parameters)
        rows: list[Any] = cursor.fetchall() if cursor.description else []
        return rows

    def _run(self, statement: str, **parameters: Any) -> Any:
        if self._session is None:
            self._session = self._open()
        parameters |= {"election": self._config.election, "term": self._term.number}
        try:
            with self._session.bounded(LONGEST_STATEMENT, self._is_over):
                return self._session.execute(statement, parameters)
        except BaseException:
            self.close()
            raise

    def _is_over(self) -> bool:
        if not self._may_act():
            raise Superseded
        return False

    def _open(self) -> Session:
        session = open_leaders_session(self._config, "ledger", self._term.node)
        try:
            with session.bounded(self._config.ttl):
                asked_at = self._clock()
                ((now,),) = session.execute(statements.CLOCK).fetchall()
                self.clock_skew = (asked_at + self._clock()) / 2 - now
        except BaseException:
            session.close()
            raise
        return session
