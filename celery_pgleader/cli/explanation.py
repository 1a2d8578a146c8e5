"""Why an entry of the schedule was, or was not, run at a time: from what the ledger holds, in sentences.

Nothing here asks the database or reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, tzinfo
from enum import Enum

from celery_pgleader.operators.words import duration, moment
from celery_pgleader.policies import Misfire, Policy

# Seconds after its slot within which an entry is published on time.
ON_TIME = 1.0


class Found(Enum):
    """What became of an entry at a time."""

    PUBLISHED = "published"
    LATE = "published late"
    BY_HAND = "asked for by hand"
    CLAIMED = "claimed, not published yet"
    COALESCED = "coalesced"
    MISSED = "missed"
    OVERLAP = "overlap"
    EXPIRED = "expired"
    PAUSED = "paused"
    SKIPPED = "skipped"
    NO_LEADER = "no leader"
    BEHIND = "not accounted for yet"
    NOT_DUE = "not due"
    NOT_YET = "not due yet"
    RETIRED = "not in the schedule"
    TOO_OLD = "forgotten"
    UNKNOWN = "entry unknown"


@dataclass(frozen=True)
class Led:
    """A term, as the history has it.

    Attributes:
        number: of the term.
        node: who led.
        gained_at: from when on.
        ended_at: until when; for a leader that was lost, until the next one was elected; none if it leads still.
        reason: how it ended.

    """

    number: int
    node: str
    gained_at: datetime
    ended_at: datetime | None
    reason: str | None


@dataclass(frozen=True)
class SlotRecord:
    """A slot, or a stretch of slots that came to the same end, as the ledger has it."""

    at: datetime
    through: datetime
    count: int
    state: str
    reason: str | None
    term: int
    task_id: str | None
    claimed_at: datetime
    settled_at: datetime | None


@dataclass(frozen=True)
class Case:
    """What is asked, and what is known of it.

    Attributes:
        entry: name of the entry.
        schedule: in words.
        policy: of the entry, by the configuration of who asks.
        now: the present.
        start: from when on is asked.
        until: to when.
        slot: the first that lies in between; none if there is none.
        before: the last one before.
        after: the first one after.
        next_slot: the first that is not accounted for.
        known_since: earlier slots of the entry are of no concern.
        paused_at: since when the entry, or the schedule, is paused.
        retired_at: since when the entry is in the schedule no more.
        led: the latest term that had begun by the time of the slot, or by the time that is asked for.
        claimed_by: the term in which the slot was accounted for.
        leader: who leads now.
        first_term_at: when the oldest term began that the history still has.

    """

    entry: str
    schedule: str
    policy: Policy
    now: datetime
    start: datetime
    until: datetime
    slot: SlotRecord | None
    before: datetime | None
    after: datetime | None
    next_slot: datetime | None
    known_since: datetime
    paused_at: datetime | None
    retired_at: datetime | None
    led: Led | None
    claimed_by: Led | None
    leader: str | None
    first_term_at: datetime | None


def explain(case: Case, zone: tzinfo) -> tuple[Found, str]:
    """Return what became of an entry, and why, in sentences with times of a zone."""
    teller = Teller(case, zone)
    found, sentences = teller.of_slot(case.slot) if case.slot is not None else teller.of_nothing()
    return found, " ".join(sentences)


class Teller:
    """Puts one case into sentences."""

    def __init__(self, case: Case, zone: tzinfo) -> None:
        """Prepare."""
        self._case = case
        self._zone = zone

    def of_slot(self, slot: SlotRecord) -> tuple[Found, list[str]]:
        """Tell what became of a slot that the ledger has."""
        if slot.state == "claimed":
            return Found.CLAIMED, [
                (
                    f"{self._due(slot)}, and was claimed {self._late(slot.at, slot.claimed_at)}{self._by()}, but is not"
                    f" published yet: the broker is away, or the leader is gone and the next one will publish it."
                ),
                f"Its task id is {slot.task_id}.",
            ]
        if slot.state == "published":
            return self._of_published(slot)
        if slot.state == "expired":
            return Found.EXPIRED, [f"{self._due(slot)}, and expired: {self._expiry(slot)}", *self._why_late(slot)]
        return self._of_skipped(slot)

    def of_nothing(self) -> tuple[Found, list[str]]:
        """Tell why the ledger has no slot there."""
        case = self._case
        if case.retired_at is not None and case.until > case.retired_at:
            return Found.RETIRED, [f"{case.entry} is in the schedule no more, since {self._at(case.retired_at)}."]
        if case.next_slot is not None and case.next_slot < case.until and case.next_slot <= case.now:
            return self._of_outstanding(case.next_slot)
        if case.start > case.now:
            when = f"is due next at {self._at(case.next_slot)}" if case.next_slot else "is not due at a time known yet"
            return Found.NOT_YET, [f"{self._at(case.start)} is yet to come; {case.entry} {when}."]
        if case.first_term_at is not None and case.until <= case.first_term_at and case.before is None:
            return Found.TOO_OLD, [
                (
                    f"The ledger knows nothing of {case.entry} at {self._at(case.start)}: its history begins at"
                    f" {self._at(case.first_term_at)}. What is older than pgleader_retention is forgotten."
                )
            ]
        if case.until <= case.known_since:
            return Found.RETIRED, [
                (
                    f"{case.entry} was not in the schedule at {self._at(case.start)}, or had another one: it is"
                    f" accounted for since {self._at(case.known_since)}."
                )
            ]
        around = [
            *([f"the slot before was {self._at(case.before)}"] if case.before is not None else []),
            *([f"the one after was {self._at(case.after)}"] if case.after is not None else []),
            *([f"the next is {self._at(case.next_slot)}"] if case.after is None and case.next_slot else []),
        ]
        return Found.NOT_DUE, [
            f"{case.entry} was not due at {self._at(case.start)}: its schedule is {case.schedule}"
            + "".join(f"; {words}" for words in around)
            + "."
        ]

    def _of_published(self, slot: SlotRecord) -> tuple[Found, list[str]]:
        assert slot.settled_at is not None
        if slot.reason == "run-now":
            return Found.BY_HAND, [
                (
                    f"Somebody asked for a run of {self._case.entry} at {self._at(slot.at)}, and it was published"
                    f" {self._late(slot.at, slot.settled_at)}{self._by()}, as task {slot.task_id}."
                )
            ]
        if (slot.settled_at - slot.at).total_seconds() <= ON_TIME:
            return Found.PUBLISHED, [
                (
                    f"{self._due(slot)}, and was published on time, {self._late(slot.at, slot.settled_at)}{self._by()},"
                    f" as task {slot.task_id}."
                )
            ]
        return Found.LATE, [
            (
                f"{self._due(slot)}, and was published late, {self._late(slot.at, slot.settled_at)}{self._by()},"
                f" as task {slot.task_id}."
            ),
            *self._why_late(slot),
        ]

    def _of_skipped(self, slot: SlotRecord) -> tuple[Found, list[str]]:
        name, policy = self._case.entry, self._case.policy
        if slot.reason == "paused":
            since = self._case.paused_at
            return Found.PAUSED, [
                f"{self._due(slot)}, and skipped: the entry, or the schedule, was paused by an operator.",
                *([f"It is paused still, since {self._at(since)}."] if since is not None else ["It goes on by now."]),
            ]
        if slot.reason == "overlap":
            return Found.OVERLAP, [
                (
                    f"{self._due(slot)}, and skipped: a run of an earlier slot was still going on, and the policy of"
                    f" {name} is overlap = {policy.overlap.value}."
                )
            ]
        if slot.reason == "coalesced":
            newer = f", that of {self._at(self._case.after)}" if self._case.after is not None else ""
            return Found.COALESCED, [
                (
                    f"{self._due(slot)}, and skipped: several slots were due at once by the time it could be run, and"
                    f" only the newest was{newer} (misfire = {policy.misfire.value})."
                ),
                *self._why_late(slot),
            ]
        if slot.reason == "missed":
            return Found.MISSED, [
                (
                    f"{self._due(slot)}, and skipped: by the time it could be run there was a newer one"
                    f" (misfire = {policy.misfire.value})."
                ),
                *self._why_late(slot),
            ]
        return Found.SKIPPED, [f"{self._due(slot)}, and skipped: {slot.reason}."]

    def _of_outstanding(self, slot: datetime) -> tuple[Found, list[str]]:
        case = self._case
        due = f"{case.entry} was due at {self._at(slot)}, and is not accounted for yet"
        if case.leader is None:
            last = case.led
            how = "" if last is None else f": {last.node} led last (term {last.number}), {self._end_of(last)}"
            return Found.NO_LEADER, [f"{due}, since nobody leads{how}.", self._prospect()]
        late = (case.now - slot).total_seconds()
        return Found.BEHIND, [
            (
                f"{due}, {duration(late)} later, though {case.leader} leads: it has only just been elected, waits for"
                " a run of this entry to end (overlap = wait), or its beat has stalled."
            )
        ]

    def _prospect(self) -> str:
        policy = self._case.policy
        what = {
            Misfire.COALESCE: "will run the newest slot that is due, and skip the others",
            Misfire.ALL: "will run each slot that is due, the oldest first",
            Misfire.SKIP: f"will run the newest slot if it is no later than {policy.grace:g} s, and skip the others",
        }[policy.misfire]
        return f"Who leads next {what} (misfire = {policy.misfire.value})."

    def _expiry(self, slot: SlotRecord) -> str:
        grace = self._case.policy.grace
        settled = slot.settled_at or slot.claimed_at
        if slot.reason == "misfire_grace":
            return f"it could be published {self._late(slot.at, settled)}, and misfire_grace is {grace:g} s."
        return f"{slot.reason}."

    def _why_late(self, slot: SlotRecord) -> list[str]:
        """Tell what kept a slot from being claimed in time, as far as the history knows."""
        claimed_by, led = self._case.claimed_by, self._case.led
        if claimed_by is None:
            return []
        if not self._gained_later(slot):
            if slot.settled_at is not None and slot.state == "published":
                if (slot.claimed_at - slot.at).total_seconds() <= ON_TIME:
                    return [f"It was claimed {self._late(slot.at, slot.claimed_at)}, and the broker took it only then."]
                return [f"{claimed_by.node} led, and claimed it only {self._late(slot.at, slot.claimed_at)}."]
            return []
        if led is None:
            return [f"Nobody led before {claimed_by.node} was elected at {self._at(claimed_by.gained_at)}."]
        return [
            (
                f"{led.node} had led (term {led.number}) and {self._end_of(led)};"
                f" {claimed_by.node} was elected (term {claimed_by.number}) at {self._at(claimed_by.gained_at)}."
            )
        ]

    def _gained_later(self, slot: SlotRecord) -> bool:
        claimed_by = self._case.claimed_by
        return claimed_by is not None and claimed_by.gained_at > slot.at

    def _end_of(self, led: Led) -> str:
        if led.reason == "lost" or led.ended_at is None:
            return "was lost"
        return f"ended at {self._at(led.ended_at)}: {led.reason}"

    def _by(self) -> str:
        claimed_by = self._case.claimed_by
        return "" if claimed_by is None else f", by {claimed_by.node} (term {claimed_by.number})"

    def _due(self, slot: SlotRecord) -> str:
        if slot.count == 1:
            return f"{self._case.entry} was due at {self._at(slot.at)}"
        return f"{self._case.entry} was due {slot.count} times from {self._at(slot.at)} to {self._at(slot.through)}"

    def _late(self, slot: datetime, done: datetime) -> str:
        return f"{duration((done - slot).total_seconds())} after that"

    def _at(self, instant: datetime | None) -> str:
        return "an unknown time" if instant is None else moment(instant, self._zone)
