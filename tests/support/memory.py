"""A ledger and a publisher in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from celery_pgleader.beat.publisher import Dispatch
from celery_pgleader.store import Claimed, EntryRecord, Outcome, SlotRow
from celery_pgleader.store.ledger import NO_RECORDS


class MemoryLedger:
    """A ledger that one leader writes to, and that does what a test says to go wrong."""

    def __init__(self) -> None:
        """Begin empty."""
        self.records: dict[str, EntryRecord] = {}
        self.rows: list[SlotRow] = []
        self.term = 7
        self.unsettled: list[Claimed] = []
        self.outcomes: list[Outcome] = []
        self.calls: list[str] = []
        self.goes_on: set[str] = set()
        self.error: BaseException | None = None
        self.closed = False
        self.clock_skew = 0.0

    def entries(self) -> dict[str, EntryRecord]:
        """Return what is remembered."""
        self._call("entries")
        return dict(self.records)

    def register(self, entries: dict[str, EntryRecord]) -> None:
        """Remember entries; what they are accounted for is not the caller's to say."""
        self._call("register")
        for name, record in entries.items():
            known = self.records.get(name)
            self.records[name] = replace(
                record, last_slot=known.last_slot if known else None, retired=False, paused=bool(known and known.paused)
            )

    def retire(self, entries: Iterable[str]) -> None:
        """Remember that entries are gone."""
        self._call("retire")
        for name in entries:
            self.records[name] = replace(self.records[name], retired=True)

    def claim(self, rows: Sequence[SlotRow], records: Mapping[str, EntryRecord] = NO_RECORDS) -> set[str]:
        """Write rows of those entries of which nothing so late is accounted for."""
        self._call("claim")
        by_entry: dict[str, list[SlotRow]] = {}
        for row in rows:
            by_entry.setdefault(row.entry, []).append(row)
        accepted = {
            name
            for name, own in by_entry.items()
            if self.records[name].accounted_until < own[0].slot
            and self.records[name].paused == (name in records and records[name].paused)
        }
        for name in accepted:
            own = by_entry[name]
            assert all(before.through < after.slot for before, after in itertools.pairwise(own))
            self.records[name] = replace(records.get(name, self.records[name]), last_slot=own[-1].through)
            self.rows += own
            self.unsettled += [Claimed(name, row.slot, self.term) for row in own if row.state == "claimed"]
        return accepted

    def running(self, entries: list[str]) -> set[str]:
        """Return of which of these entries a run is going on."""
        self._call("running")
        return self.goes_on.intersection(entries)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Remember what became of slots."""
        self._call("settle")
        self.outcomes += outcomes
        settled = {(outcome.entry, outcome.slot) for outcome in outcomes}
        self.unsettled = [claimed for claimed in self.unsettled if (claimed.entry, claimed.slot) not in settled]

    def claimed(self) -> list[Claimed]:
        """Return the slots that are not settled."""
        self._call("claimed")
        return sorted(self.unsettled, key=lambda claimed: claimed.slot)

    def prune(self) -> int:
        """Keep everything."""
        self._call("prune")
        return 0

    def close(self) -> None:
        """Be closed."""
        self.closed = True

    def runs(self, entry: str) -> list[datetime]:
        """Return the slots of an entry that were claimed to be run."""
        return [row.slot for row in self.rows if row.entry == entry and row.state == "claimed"]

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.error is not None:
            raise self.error


class Outbox:
    """Keeps what is to be published."""

    def __init__(self) -> None:
        """Begin empty."""
        self.dispatches: list[Dispatch] = []

    def put(self, dispatch: Dispatch) -> None:
        """Keep it."""
        self.dispatches.append(dispatch)

    @property
    def slots(self) -> list[tuple[str, datetime]]:
        """What was put, by name of the entry and slot."""
        return [dispatch.key for dispatch in self.dispatches]
