"""What operators are told of a slot, for each end that it can come to."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from celery_pgleader.cli.explanation import Case, Found, Led, SlotRecord, explain
from celery_pgleader.policies import Misfire, Policy

UTC = timezone.utc
TEN = datetime(2026, 11, 24, 10, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
FIRST = Led(7, "a@x", TEN - HOUR, None, None)
GONE = replace(FIRST, ended_at=TEN - MINUTE, reason="resigned")
LATER = Led(8, "b@x", TEN + 6 * SECOND, None, None)
SLOT = SlotRecord(TEN, TEN, 1, "published", None, 7, "uuid", TEN + SECOND / 100, TEN + SECOND / 50)
CASE = Case(
    entry="report",
    schedule="every 1:00:00",
    policy=Policy(),
    now=TEN + 10 * MINUTE,
    start=TEN,
    until=TEN + MINUTE,
    slot=SLOT,
    before=TEN - HOUR,
    after=None,
    next_slot=TEN + HOUR,
    known_since=TEN - 24 * HOUR,
    paused_at=None,
    retired_at=None,
    led=FIRST,
    claimed_by=FIRST,
    leader="a@x",
    first_term_at=TEN - 24 * HOUR,
)


def told(**changes: Any) -> tuple[Found, str]:
    """Return what is told of a case."""
    return explain(replace(CASE, **changes), UTC)


def slot(state: str, reason: str | None = None, *, late: timedelta = SECOND / 50, **changes: Any) -> SlotRecord:
    """Return a slot that came to an end."""
    return replace(SLOT, state=state, reason=reason, claimed_at=TEN + late, settled_at=TEN + late, **changes)


def test_slot_published_on_time_names_leader_and_task() -> None:
    assert told() == (
        Found.PUBLISHED,
        (
            "report was due at 2026-11-24 10:00:00, and was published on time, 20 ms after that, by a@x (term 7),"
            " as task uuid."
        ),
    )


def test_slot_late_after_a_failover_names_both_leaders() -> None:
    """How the term of the first ended, and when that of the second began."""
    found, words = told(slot=slot("published", late=7 * SECOND, term=8), claimed_by=LATER, led=GONE)
    assert found is Found.LATE
    assert words.endswith(
        "7.0 s after that, by b@x (term 8), as task uuid. a@x had led (term 7) and ended at 2026-11-24 09:59:00:"
        " resigned; b@x was elected (term 8) at 2026-11-24 10:00:06."
    )
    assert "a@x had led (term 7) and was lost;" in told(slot=slot("published", late=7 * SECOND), claimed_by=LATER)[1]
    first = told(slot=slot("published", late=7 * SECOND), claimed_by=LATER, led=None)[1]
    assert first.endswith("Nobody led before b@x was elected at 2026-11-24 10:00:06.")


def test_late_slot_names_broker_or_leader_as_the_cause() -> None:
    """The time of the claim tells which."""
    broker = replace(SLOT, settled_at=TEN + 40 * SECOND)
    assert told(slot=broker)[1].endswith("It was claimed 10 ms after that, and the broker took it only then.")
    leader = slot("published", late=40 * SECOND)
    assert told(slot=leader)[1].endswith("a@x led, and claimed it only 40.0 s after that.")


def test_claimed_slot_names_its_future_task_id() -> None:
    found, words = told(slot=slot("claimed"))
    assert found is Found.CLAIMED
    assert words.endswith("Its task id is uuid.")


def test_slot_run_by_hand_is_reported_as_such() -> None:
    """It is none of the schedule's."""
    assert told(slot=slot("published", "run-now"))[0] is Found.BY_HAND


@pytest.mark.parametrize(
    ("reason", "found", "words"),
    [
        ("coalesced", Found.COALESCED, "only the newest was, that of 2026-11-24 11:00:00 (misfire = coalesce)"),
        ("missed", Found.MISSED, "there was a newer one (misfire = coalesce)"),
        ("overlap", Found.OVERLAP, "the policy of report is overlap = allow"),
        ("paused", Found.PAUSED, "was paused by an operator. It goes on by now."),
        ("cannot be sent: TypeError", Found.SKIPPED, "skipped: cannot be sent: TypeError."),
    ],
)
def test_skipped_slot_gives_the_reason(reason: str, found: Found, words: str) -> None:
    what, told_words = told(slot=slot("skipped", reason), after=TEN + HOUR)
    assert what is found
    assert words in told_words


def test_slot_of_an_entry_still_paused_says_since_when() -> None:
    _, words = told(slot=slot("skipped", "paused"), paused_at=TEN - MINUTE)
    assert words.endswith("It is paused still, since 2026-11-24 09:59:00.")


def test_expired_slot_gives_lateness_and_rule() -> None:
    """Or says that the entry is gone."""
    strict = Policy(misfire_grace=3)
    expired = slot("expired", "misfire_grace", late=6 * SECOND)
    found, words = told(slot=expired, policy=strict, claimed_by=LATER)
    assert found is Found.EXPIRED
    assert "it could be published 6.0 s after that, and misfire_grace is 3 s. a@x had led" in words
    assert "expired: the entry is gone." in told(slot=slot("expired", "the entry is gone"))[1]


def test_stretch_of_slots_is_explained_as_one() -> None:
    stretch = slot("skipped", "coalesced", count=3, through=TEN + 2 * HOUR)
    words = "report was due 3 times from 2026-11-24 10:00:00 to 2026-11-24 12:00:00, and skipped"
    assert told(slot=stretch)[1].startswith(words)


@pytest.mark.parametrize(
    ("misfire", "words"),
    [
        (Misfire.COALESCE, "will run the newest slot that is due"),
        (Misfire.ALL, "will run each slot that is due"),
        (Misfire.SKIP, "will run the newest slot if it is no later than 10 s"),
    ],
)
def test_due_slot_without_a_leader_says_what_will_become_of_it(misfire: Misfire, words: str) -> None:
    """It names the last leader, if there was one."""
    policy = Policy(misfire=misfire)
    found, sentences = told(slot=None, next_slot=TEN, leader=None, led=GONE, policy=policy)
    assert found is Found.NO_LEADER
    assert "nobody leads: a@x led last (term 7), ended at 2026-11-24 09:59:00: resigned." in sentences
    assert f"Who leads next {words}" in sentences
    assert "since nobody leads. Who" in told(slot=None, next_slot=TEN, leader=None, led=None)[1]


def test_due_slot_of_a_leader_that_is_behind_names_it() -> None:
    found, words = told(slot=None, next_slot=TEN)
    assert found is Found.BEHIND
    assert "is not accounted for yet, 10 min later, though a@x leads" in words


def test_time_without_a_slot_names_the_slots_around_it() -> None:
    assert told(slot=None, after=TEN + HOUR) == (
        Found.NOT_DUE,
        (
            "report was not due at 2026-11-24 10:00:00: its schedule is every 1:00:00; the slot before was 2026-11-24"
            " 09:00:00; the one after was 2026-11-24 11:00:00."
        ),
    )
    assert told(slot=None)[1].endswith("the next is 2026-11-24 11:00:00.")


def test_future_time_names_the_next_slot() -> None:
    found, words = told(slot=None, start=TEN + HOUR, until=TEN + HOUR + MINUTE)
    assert found is Found.NOT_YET
    assert words == "2026-11-24 11:00:00 is yet to come; report is due next at 2026-11-24 11:00:00."
    assert "not due at a time known yet" in told(slot=None, start=TEN + HOUR, until=TEN + 2 * HOUR, next_slot=None)[1]


def test_time_outside_of_the_records_says_why() -> None:
    """The entry was not there yet, is there no more, or it is too long ago."""
    assert told(slot=None, known_since=TEN + 2 * MINUTE)[0] is Found.RETIRED
    found, words = told(slot=None, retired_at=TEN - MINUTE)
    assert (found, words) == (Found.RETIRED, "report is in the schedule no more, since 2026-11-24 09:59:00.")
    assert told(slot=None, before=None, first_term_at=TEN + HOUR)[0] is Found.TOO_OLD
