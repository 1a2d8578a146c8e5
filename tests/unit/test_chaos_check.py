"""The checker of the chaos program finds each broken promise in a history made by hand, and nothing in a good one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import pytest

from tests.chaos.check import check
from tests.chaos.check.leader_only import LATE
from tests.chaos.check.notifications import SENT_AGAIN
from tests.chaos.check.report import Report
from tests.chaos.check.story import LOST_ON_THE_WAY, UNKNOWN
from tests.chaos.check.workers import KOMBUS_OWN
from tests.chaos.driver import awaited
from tests.chaos.history import Fact

A, B = "a@chaos", "b@chaos"
# A Monday at noon.
NOON = 1_795_435_200.0
# When the ledger was copied, on the other clock.
COPIED = 100.0


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(NOON + seconds, timezone.utc).isoformat()


def fact(what: str, at: float = 0.0, **of: Any) -> Fact:
    return {"what": what, "at": at, **of}


def leads(term: int, node: str, since: float, until: float, reason: str = "stopped") -> list[Fact]:
    """Tell of a leadership that is written down, and trusted from beginning to end."""
    return [
        fact("gained", since, term=term, node=node),
        fact("trusted", until, term=term, node=node, since=since, until=until),
        fact("lost", until, term=term, node=node, reason=reason),
        fact("ledger term", COPIED, term=term, node=node, gained_at=iso(since)),
    ]


def runs(task: str, name: str, node: str, began: float, ended: float | None, **of: Any) -> list[Fact]:
    """Tell of a message that was received, and of its run."""
    run = f"{task} {name} {node} {began}"
    about: dict[str, Any] = {
        "task": task,
        "id": f"{task} {name}",
        "name": name,
        "node": node,
        "redelivered": False,
    } | of
    told = [fact("received", began, **about), fact("began", began, run=run, **about)]
    if ended is not None:
        told += [fact("ended", ended, run=run), fact("acknowledged", ended, **about)]
    return told


def order(name: str, committed: float, *, key: str = "k", lasted: float = 0.1) -> Fact:
    return fact("sent", committed, task="chaos.handle", name=name, key=key, began=committed - lasted)


def handled(name: str, at: float, *, key: str = "k") -> list[Fact]:
    return runs("chaos.handle", name, A, at, at, key=key) + runs("chaos.witness", name, "w", at, at, key=key)


def led(name: str, node: str, began: float, ended: float | None, term: int, *, trusted: bool = True) -> list[Fact]:
    return runs("chaos.lead", name, node, began, ended, term=term, trusted=trusted)


def sent(task: str, name: str, at: float = 0.0, **of: Any) -> Fact:
    return fact("sent", at, task=task, name=name, **of)


def entry(last: float, name: str = "each", since: float = 0.0) -> Fact:
    return fact("ledger entry", entry=name, anchor=NOON, since=NOON + since, last_slot=NOON + last)


def slot(at: float, state: str = "published", through: float | None = None, **of: Any) -> Fact:
    last = at if through is None else through
    row: dict[str, Any] = {"slots": round(last - at) + 1, "state": state, "old": True} | of
    return fact("ledger slot", entry="each", slot=NOON + at, through=NOON + last, **row)


def ticks(at: float, *, task_id: str = "", began: float = 0.0, node: str = A, ended: bool = True) -> list[Fact]:
    about = {
        "task": "chaos.tick",
        "id": task_id or f"each {at}",
        "entry": "each",
        "slot": iso(at),
        "node": node,
        "redelivered": False,
    }
    run = f"{about} {began}"
    told = [fact("received", began, **about), fact("began", began, run=run, **about)]
    return [*told, *([fact("ended", began, run=run)] if ended else [])]


def fault(kind: str, began: float, at: float, node: str | None = None, term: int | None = None, **of: Any) -> Fact:
    return fact("fault", at, kind=kind, node=node, term=term, began=began, **of)


def of_plain(*facts: Fact) -> list[Fact]:
    """Tell the same of an entry without a policy."""
    return [{**one, "entry": "plain"} if "entry" in one else one for one in facts]


def judge(*facts: Fact | Sequence[Fact], broker: str = "rabbitmq", **of: Any) -> Report:
    told = [fact("run", broker=broker, **of), fact("recovered")]
    for one in facts:
        told += [one] if isinstance(one, dict) else one
    return check(told)


def counted(counter: Counter[str]) -> dict[str, int]:
    """Return what is there at all."""
    return {name: number for name, number in counter.items() if number}


GOOD: list[Fact] = [
    *leads(1, A, 1.0, 2.0, reason="the server has ended the session"),
    *leads(2, B, 2.001, 9.0),
    entry(3.0),
    slot(1.0),
    slot(2.0, "skipped", through=3.0),
    *ticks(1.0),
    order("o1", 1.0),
    order("o2", 2.0),
    *handled("o1", 1.1),
    *handled("o2", 2.1),
    sent("chaos.lead", "l1"),
    *led("l1", A, 1.1, 1.2, 1),
    sent("chaos.work", "w1"),
    *runs("chaos.work", "w1", A, 1.0, 1.1),
    fault("terminate", 1.99, 1.995, A, 1),
]


def test_a_good_history() -> None:
    """Everything is counted, and nothing is wrong."""
    report = judge(GOOD)
    assert report.offences == []
    assert report.terms == {"number": 2, "monotonic": True, "trusted_overlap_ms": 0.0}
    assert counted(report.slots) == {"due": 3, "published": 1, "skipped": 2}
    assert counted(report.notifications) == {"sent": 2, "handled": 2}
    assert counted(report.leader_only) == {"sent": 1, "ran": 1}
    assert report.faults == {"terminate": 1}
    assert report.failover_ms == {"terminate": {"median": 11.0, "max": 11.0, "n": 1}}
    assert (report.workers_died, report.tasks_failed) == (0, 0)


@pytest.mark.parametrize(
    "facts",
    [
        [*leads(2, A, 1.0, 2.0), *leads(1, B, 3.0, 4.0)],
        [*leads(1, A, 1.0, 2.0), *leads(1, B, 3.0, 4.0)],
        [fact("gained", 1.0, term=1, node=A)],
    ],
    ids=["falls", "stays", "is not in the ledger"],
)
def test_a_term_that_does_not_rise(facts: list[Fact]) -> None:
    """In the order in which they were gained."""
    report = judge(facts)
    assert not report.terms["monotonic"]
    assert not report.faultless


def test_a_term_of_the_very_end() -> None:
    """The ledger was copied before."""
    assert judge(leads(1, A, 1.0, 2.0), fact("gained", COPIED + 1, term=2, node=B)).faultless


def test_two_that_are_trusted_at_once() -> None:
    """For as long as both were."""
    report = judge(leads(1, A, 1.0, 2.0), leads(2, B, 1.9975, 3.0))
    assert report.terms == {"number": 2, "monotonic": True, "trusted_overlap_ms": 2.5}
    assert not report.faultless


def test_a_slot_of_which_the_ledger_knows_nothing() -> None:
    """Up to the last one that is accounted for."""
    report = judge(entry(3.0), slot(1.0), ticks(1.0), slot(3.0), ticks(3.0))
    assert (report.slots["due"], report.slots["unaccounted"]) == (3, 1)
    assert report.offences == [f"slots: each of {iso(2.0)} is not in the ledger"]


def test_a_slot_that_was_claimed_and_never_published() -> None:
    """Unless it was claimed just now."""
    report = judge(entry(2.0), slot(1.0, "claimed"), slot(2.0, "claimed", old=False))
    assert (report.slots["due"], report.slots["unaccounted"]) == (1, 1)
    assert len(report.offences) == 1


def test_a_slot_that_counts_as_published_and_never_came() -> None:
    """It is lost, unless the broker has lost it: Redis loses one message with a connection."""
    assert judge(entry(1.0), slot(1.0)).slots["unaccounted"] == 1
    assert not judge(entry(1.0), slot(1.0), broker="valkey").faultless, "Redis had no reason to lose it"
    report = judge(entry(1.0), slot(1.0), fault("kill", 1.0, 1.0, A), broker="valkey")
    assert report.faultless
    assert report.allowed == {LOST_ON_THE_WAY: 1}


@pytest.mark.parametrize(
    "facts",
    [
        [slot(1.0), slot(1.0, "skipped"), *ticks(1.0)],
        [slot(1.0), *ticks(1.0), *ticks(1.0, task_id="another", began=1.0)],
        [slot(1.0), *ticks(1.0), *ticks(0.5)],
        [slot(1.0), *ticks(1.0), *ticks(1.0, began=5.0, node=B)],
    ],
    ids=["in the ledger twice", "two task ids", "never claimed", "run twice"],
)
def test_a_slot_that_is_there_twice(facts: list[Fact]) -> None:
    """In whatever way."""
    report = judge(entry(1.0), facts)
    assert report.slots["duplicates"] == 1
    assert not report.faultless


@pytest.mark.parametrize(
    "facts",
    [
        [fault("pg-crash", 4.0, 4.5)],
        [fault("pg-restart", 0.5, 1.0)],
        [fault("deaf", 1.0, 4.0, B, link="postgres")],
        [fault("kill", 0.0, 0.1, A)],
    ],
    ids=["the database was away", "it was when the first ended", "it was out of reach", "the first worker died"],
)
def test_a_run_that_nobody_could_know_to_be_the_second(facts: list[Fact]) -> None:
    """That is not promised."""
    report = judge(entry(1.0), slot(1.0), ticks(1.0), ticks(1.0, began=5.0, node=B), facts)
    assert report.faultless
    assert report.allowed == {UNKNOWN: 1}


def test_a_slot_that_is_published_again() -> None:
    """Under its task id that is allowed, and counted; what the broker delivers again is not."""
    again = ticks(1.0, began=5.0, ended=False)
    report = judge(entry(1.0, "plain"), of_plain(slot(1.0), *ticks(1.0), *again))
    assert (report.slots["republished"], report.faultless) == (1, True)
    again[0]["redelivered"] = True
    assert judge(entry(1.0, "plain"), of_plain(slot(1.0), *ticks(1.0), *again)).slots["republished"] == 0


def test_slots_that_come_to_a_witness_are_not_lost_with_others() -> None:
    """Nothing is sent to the workers that are killed, so that Redis has nothing to lose."""
    killed = fault("kill", 1.0, 1.0, A)
    assert judge(entry(1.0), slot(1.0), killed, broker="valkey", idle=[B]).faultless
    assert not judge(entry(1.0), slot(1.0), killed, broker="valkey", idle=[A]).faultless


def test_slots_of_every_entry() -> None:
    """Each has its own steps."""
    for name, step in (("long", 7.0), ("minute", 60.0)):
        rows = [slot(step * number) for number in (1, 3)]
        told = [received for number in (1, 3) for received in ticks(step * number)]
        report = judge(entry(step * 3, name), [{**one, "entry": name} for one in (*rows, *told)])
        assert report.offences == [f"slots: {name} of {iso(step * 2)} is not in the ledger"]


def test_a_run_again_after_one_that_died() -> None:
    """That has to be."""
    report = judge(entry(1.0), slot(1.0), ticks(1.0, ended=False), ticks(1.0, began=5.0, node=B))
    assert report.faultless


def test_runs_of_one_entry_beside_each_other() -> None:
    """Where its policy is against it, and the workers could know."""
    first = runs("chaos.tick", "", A, 1.0, 2.0, id="1", entry="single", slot=iso(1.0))
    second = runs("chaos.tick", "", B, 1.5, 2.5, id="2", entry="single", slot=iso(2.0))
    assert len(judge(first, second).offences) == 1
    assert judge(first, second, fault("pg-restart", 1.1, 1.3)).allowed == {UNKNOWN: 1}
    after = runs("chaos.tick", "", B, 2.5, 2.6, id="2", entry="single", slot=iso(2.0))
    assert judge(first, after).faultless
    killed = runs("chaos.tick", "", A, 1.0, None, id="1", entry="single", slot=iso(1.0))
    assert judge(killed, second, fault("kill", 1.2, 1.2, A)).faultless
    assert judge(killed, second, fact("died", 1.9, node=A, code=1, error=KOMBUS_OWN), broker="valkey").faultless


def test_a_notification_that_is_lost() -> None:
    """Committed, and never run; the broker is no excuse once a worker had it."""
    received = runs("chaos.handle", "o1", A, 1.0, None, key="k") + runs("chaos.witness", "o1", "w", 1.0, 1.0, key="k")
    for broker in ("valkey", "rabbitmq"):
        report = judge(order("o1", 1.0), received, broker=broker)
        assert (report.notifications["sent"], report.notifications["handled"]) == (1, 0)
        assert report.notifications["lost"] == 1
    assert judge(order("o1", 1.0)).notifications["lost"] == 2
    kills = [fault("kill", 1.0, 1.0, A), fault("kill", 2.0, 2.0, A)]
    assert judge(order("o1", 1.0), kills, broker="valkey").faultless
    assert not judge(order("o1", 1.0), kills[:1], broker="valkey").faultless


def test_a_notification_that_nobody_committed() -> None:
    """It must not be run."""
    assert not judge(handled("o1", 1.0)).faultless


def test_a_dead_letter() -> None:
    """There is no reason for one."""
    assert not judge(fact("dead letter", name="o1", error="no task")).faultless


def test_a_notification_that_is_handled_twice() -> None:
    """Though its worker could know."""
    report = judge(order("o1", 1.0), handled("o1", 1.1), runs("chaos.handle", "o1", B, 1.5, 1.6, key="k"))
    assert report.notifications["duplicates"] == 1
    assert not report.faultless


def test_a_notification_that_goes_to_the_witness_only() -> None:
    """It is run once, too, and not what nobody committed."""
    told = fact("sent", 1.0, task="chaos.witness", name="o1", key="k", began=0.9)
    first = runs("chaos.witness", "o1", "w", 1.1, 1.2, key="k")
    again = runs("chaos.witness", "o1", "w", 5.0, 5.1, key="k")
    report = judge(told, first)
    assert report.faultless
    assert counted(report.notifications) == {"sent": 1, "handled": 1}
    assert judge(told, first, again).notifications["duplicates"] == 1
    assert judge(told).notifications["lost"] == 1
    assert not judge(first).faultless


def test_a_notification_that_is_repeated_while_the_database_is_away() -> None:
    """The worker has to say that it could not know, unless it died."""
    away = fault("pg-restart", 1.1, 1.4)
    first = runs("chaos.handle", "o1", A, 1.1, 1.2, key="k", notification=7)
    witness = runs("chaos.witness", "o1", "w", 1.1, 1.1, key="k")
    told = [order("o1", 1.0), *first, *witness, *runs("chaos.handle", "o1", B, 1.5, 1.6, key="k", notification=7)]
    assert judge(told, away).notifications["duplicates"] == 1
    for excuse in (fact("unguarded", notification=7), fault("kill", 1.3, 1.3, A)):
        report = judge(told, away, excuse)
        assert report.faultless
        assert report.allowed == {UNKNOWN: 1}
    assert not judge(told, fact("unguarded", notification=7)).faultless, "the database was there"


def test_notifications_in_figures() -> None:
    """What is not promised is counted: doubts of those who send, deliveries again, and raw ones that nobody heard."""
    told = [order("o1", 1.0), fact("in doubt", 0.9, name="o1"), *handled("o1", 1.1)]
    told += runs("chaos.handle", "o1", A, 3.0, None, key="k", redelivered=True)[:1]
    told += runs("chaos.witness", "o1", A, 3.0, None, key="k", redelivered=True)[:1]
    told += [sent("chaos.hear", name) for name in ("m1", "m2")] + runs("chaos.hear", "m1", A, 1.0, 1.0)
    report = judge(told)
    assert report.faultless
    figures = {"in_doubt": 1, "redelivered": 2, "raw_sent": 2, "raw_lost": 1}
    assert counted(report.notifications) == {"sent": 1, "handled": 1, **figures}
    told += runs("chaos.hear", "m1", A, 2.0, 2.0, redelivered=True)
    report = judge(told)
    assert (report.notifications["raw_heard_twice"], report.faultless) == (1, True)


def test_raw_notification_has_one_task_id() -> None:
    """Its message may come twice under that, which is counted."""
    heard = runs("chaos.hear", "m1", A, 1.0, 1.0) + runs("chaos.hear", "m1", A, 1.0, 1.0, id="another")
    report = judge(sent("chaos.hear", "m1"), heard)
    assert report.notifications["duplicates"] == 1
    again = runs("chaos.hear", "m1", A, 1.0, 1.0) + runs("chaos.hear", "m1", A, 2.0, 2.0)
    report = judge(sent("chaos.hear", "m1"), again)
    assert (report.notifications["duplicates"], report.allowed) == (0, {SENT_AGAIN: 1})


def test_notifications_out_of_order() -> None:
    """Within a key, if one was committed before the other was begun, and at their first delivery."""
    late = [order("o1", 1.0), order("o2", 2.0), *handled("o2", 2.1), *handled("o1", 2.2)]
    assert judge(late).notifications["out_of_order"] == 1
    assert not judge(late).faultless
    other_key = [order("o1", 1.0), order("o2", 2.0, key="x"), *handled("o2", 2.1, key="x"), *handled("o1", 2.2)]
    assert judge(other_key).faultless
    overlapping = [order("o1", 1.0), order("o2", 1.05), *handled("o2", 2.1), *handled("o1", 2.2)]
    assert judge(overlapping).faultless
    redelivered = [*handled("o2", 2.1), *runs("chaos.handle", "o1", A, 2.2, 2.2, key="k")]
    redelivered += runs("chaos.witness", "o1", "w", 2.2, 2.2, key="k", redelivered=True)
    assert judge(order("o1", 1.0), order("o2", 2.0), redelivered).faultless
    again = [*handled("o1", 1.1), *runs("chaos.witness", "o2", "w", 2.1, 2.1, key="k")]
    again += [*runs("chaos.witness", "o1", "w", 2.2, 2.2, key="k"), *runs("chaos.handle", "o2", A, 2.1, 2.1, key="k")]
    assert judge(order("o1", 1.0), order("o2", 2.0), again).faultless


@pytest.mark.parametrize(
    "run",
    [
        led("l1", A, 5.0, 5.1, 1),
        led("l1", A, 5.0, 5.1, 1, trusted=False),
        led("l1", A, 3.5, 3.6, 2),
    ],
    ids=["a later term had begun", "it knew", "another node's term"],
)
def test_a_leader_only_task_off_the_leader(run: list[Fact]) -> None:
    """Whatever it believes."""
    report = judge(leads(1, A, 1.0, 2.0), leads(2, B, 3.0, 9.0), sent("chaos.lead", "l1"), run)
    assert report.leader_only["ran_off_leader"] == 1
    assert not report.faultless


def test_a_leader_only_task_that_begins_as_trust_ends() -> None:
    """Between the question and the first line of the task, anything may happen."""
    report = judge(leads(1, A, 1.0, 2.0), sent("chaos.lead", "l1"), led("l1", A, 2.001, 2.1, 1, trusted=False))
    assert report.faultless
    assert report.allowed == {"leader-only runs that began as trust ended": 1}


BESIDE: list[Fact] = [
    *(sent("chaos.lead", name) for name in ("l1", "l2")),
    *leads(1, A, 1.0, 2.0),
    *led("l1", A, 1.9, 2.5, 1),
    *leads(2, B, 2.1, 9.0),
    *led("l2", B, 2.2, 2.3, 2),
]


@pytest.mark.parametrize("kind", ["term", "terminate"])
def test_leader_only_tasks_beside_each_other(kind: str) -> None:
    """Those of a leader that lives on must have ended before."""
    report = judge(BESIDE, fault(kind, 1.99, 2.0, A, 1))
    assert report.leader_only["overlaps"] == 1
    assert not report.faultless


@pytest.mark.parametrize(
    "facts",
    [
        [fault("kill", 2.0, 2.0, A, 1)],
        [fault("stop", 1.95, 4.0, A, 1)],
        [fault("pg-crash", 1.95, 2.05)],
        [fault("deaf", 0.5, 3.0, A, 1, link="postgres")],
        [fact("died", 3.0, node=A, code=1, error=KOMBUS_OWN)],
    ],
    ids=["killed", "stopped", "Postgres crashed", "cut off", "ended by kombu"],
)
def test_leader_only_tasks_that_cannot_be_waited_for(facts: list[Fact]) -> None:
    """Those of a leader that is lost without a chance to finish."""
    report = judge(BESIDE, facts, broker="valkey")
    assert report.faultless
    assert report.leader_only["overlaps"] == 0


def test_leader_only_tasks_beside_those_of_one_that_stood_still() -> None:
    """A leader that was too late to renew its lead, by its own words, cannot be waited for either."""
    late = [{**one, "reason": LATE} if one["what"] == "lost" else one for one in BESIDE]
    report = judge(late)
    assert report.faultless
    assert report.allowed == {"leader-only runs that went on when their leader was late": 1}
    assert not judge(BESIDE).faultless


def test_a_leader_only_task_that_neither_ends_nor_dies() -> None:
    """It counts as going on, for ever."""
    endless = [one for one in BESIDE if one["what"] != "ended"]
    assert judge(endless).leader_only["overlaps"] == 1


TWICE: list[Fact] = [*leads(1, A, 1.0, 9.0), *led("l1", A, 2.0, 2.5, 1), *led("l1", A, 6.0, 6.1, 1)]


def test_a_leader_only_task_that_is_run_again() -> None:
    """There was no reason for it."""
    report = judge(sent("chaos.lead", "l1"), TWICE)
    assert report.leader_only["repeated"] == 1
    assert not report.faultless


@pytest.mark.parametrize(
    ("why", "facts"),
    [
        ("an acknowledgement was lost", [fault("kill", 3.0, 3.0, A)]),
        ("an acknowledgement was lost", [fault("broker-restart", 1.9, 2.1)]),
        ("an acknowledgement was lost", [fault("deaf", 1.0, 2.1, A, link="broker")]),
        ("an acknowledgement was lost", [fact("died", 4.0, node=A, code=1, error=KOMBUS_OWN)]),
        ("a worker was stopped", [fault("stop", 2.6, 4.0, A)]),
        ("the worker was cut off", [fault("pg-crash", 2.6, 2.8)]),
        ("the worker was cut off", [fault("partition", 2.6, 2.8, A, link="postgres")]),
        ("it was sent twice", [fact("in doubt", 0.5, name="l1")]),
    ],
)
def test_a_leader_only_task_that_is_run_again_for_a_reason(why: str, facts: list[Fact]) -> None:
    """In what had become of the earlier run, from its delivery to its acknowledgement, or in its sending."""
    report = judge(sent("chaos.lead", "l1"), TWICE, facts, broker="valkey")
    assert report.faultless
    assert report.allowed[f"leader-only runs that were repeated: {why}"] == 1


def test_a_leader_only_task_that_is_run_again_after_one_that_died() -> None:
    """That has to be."""
    again = [*led("l1", A, 2.0, None, 1), *led("l1", A, 6.0, 6.1, 1)]
    report = judge(sent("chaos.lead", "l1"), leads(1, A, 1.0, 9.0), again)
    assert report.faultless
    assert report.allowed == {"leader-only runs that were repeated: the worker died": 1}


@pytest.mark.parametrize(
    "facts",
    [
        [fault("kill", 2.0, 2.1, B)],
        [fault("broker-restart", 4.0, 4.5)],
        [fault("stop", 4.0, 4.5, A)],
        [fault("terminate", 2.1, 2.2, A)],
        [fact("in doubt", 0.5, name="l2")],
    ],
    ids=["another was killed", "long after", "stopped long after", "it lived on", "another was sent twice"],
)
def test_a_leader_only_task_that_is_run_again_without_a_reason(facts: list[Fact]) -> None:
    """What befell others, or came later, is none."""
    assert judge(sent("chaos.lead", "l1"), TWICE, facts).leader_only["repeated"] == 1


def test_a_leader_only_task_that_is_given_back_while_the_next_leader_runs_it() -> None:
    """It had come to another, which was stopped, and had not begun it."""
    came = led("l1", B, 1.0, None, 1)[:1]
    assert judge(sent("chaos.lead", "l1"), came, TWICE, fault("stop", 1.1, 2.1, B)).faultless
    assert not judge(sent("chaos.lead", "l1"), came, TWICE, fault("stop", 0.8, 0.9, B)).faultless, "before it came"
    assert not judge(sent("chaos.lead", "l1"), came, TWICE, fault("stop", 5.0, 5.5, B)).faultless, "long after"


def test_acknowledgement_that_never_came_or_came_late_may_be_lost() -> None:
    """As on a busy machine, and with the solo pool, where it waits for the runs of all messages that came together."""
    told = [sent("chaos.lead", "l1"), *leads(1, A, 1.0, 9.0)]
    told += [*led("l1", A, 2.0, 2.5, 1), *led("l1", A, 8.0, 8.1, 1)]
    first = next(one for one in told if one["what"] == "acknowledged")
    never = [one for one in told if one is not first]
    late = [*never, {**first, "at": 6.2}]
    for kind in ("stop", "kill"):
        harm = fault(kind, 6.0, 6.5, A)
        assert judge(never, harm).faultless
        assert judge(late, harm).faultless
        assert not judge(told, harm).faultless
    assert not judge(never).faultless, "nothing befell it"


def test_links_of_a_chain() -> None:
    """One that was never sent is not lost; one whose link before was run again is run again."""
    links = [sent("chaos.lead", "l1"), sent("chaos.lead", "l2", after="l1"), sent("chaos.lead", "l3", after="l2")]
    assert judge(links).offences == ["leader_only: l1 was not run by chaos.lead"]
    kills = [fault("kill", 1.0, 1.0, A)]
    assert judge(links, kills, broker="valkey").allowed == {LOST_ON_THE_WAY: 1}
    ended = [*leads(1, A, 1.0, 20.0), *TWICE[4:]]
    assert not judge(links, ended, led("l2", A, 7.0, 7.1, 1), broker="valkey").faultless, "the last link is lost"
    thrice = [*led("l2", A, 2.6, 2.7, 1), *led("l2", A, 6.2, 6.3, 1), *led("l3", A, 7.0, 7.1, 1)]
    report = judge(links, ended, thrice, fault("stop", 2.4, 2.5, A))
    assert report.faultless
    assert report.allowed["leader-only runs that were repeated: the link before was repeated"] == 1


def test_times_of_leader_only_tasks() -> None:
    """From the lead to the first start, if one was waiting; from a kill to the next start of what it interrupted."""
    told = [sent("chaos.lead", "l1", 0.5), *leads(1, A, 1.0, 2.0), *led("l1", A, 1.25, None, 1)]
    told += [fault("kill", 2.0, 2.0, A, 1), *leads(2, B, 2.1, 9.0), *led("l1", B, 3.0, 3.1, 2)]
    report = judge(told)
    assert report.faultless
    assert report.restore_ms == {
        "gained to start": {"median": 250.0, "max": 250.0, "n": 1},
        "kill to restart": {"median": 1000.0, "max": 1000.0, "n": 1},
    }
    assert judge(leads(1, A, 1.0, 2.0), sent("chaos.lead", "l1", 1.1), led("l1", A, 1.2, 1.3, 1)).restore_ms == {}
    later = sent("chaos.lead", "l1", 0.5, due=False)
    assert judge(leads(1, A, 1.0, 2.0), later, led("l1", A, 1.2, 1.3, 1)).restore_ms == {}


def test_a_leader_only_task_that_is_lost() -> None:
    """It was taken, and never came to its end."""
    report = judge(leads(1, A, 1.0, 2.0), sent("chaos.lead", "l1"), led("l1", A, 1.5, None, 1), broker="valkey")
    assert (report.leader_only["sent"], report.leader_only["ran"]) == (1, 0)
    assert not report.faultless


def test_an_ordinary_task_that_is_lost_or_fails() -> None:
    """No election is a reason for that."""
    assert not judge(sent("chaos.work", "w1")).faultless
    report = judge(fact("failed", task="chaos.work", id="w1", error="OperationalError()"))
    assert report.tasks_failed == 1
    assert not report.faultless


@pytest.mark.parametrize("code", [1, None])
def test_a_worker_that_dies(code: int | None) -> None:
    """Or does not end when it is told to."""
    report = judge(fact("died", node=A, code=code, error=None))
    assert report.workers_died == 1
    assert not report.faultless


def test_a_worker_that_kombu_ends() -> None:
    """When it loses Redis; with another broker it has no such excuse."""
    died = fact("died", node=A, code=1, error=f"Unrecoverable error: {KOMBUS_OWN}")
    assert judge(died, broker="valkey").faultless
    assert not judge(died).faultless


def test_what_does_not_recover() -> None:
    """In the quiet time after the last fault."""
    assert not judge(fact("stuck", why="nobody leads")).faultless
    assert not check([fact("run", broker="valkey")]).faultless


def test_messages_that_are_left_over() -> None:
    """Somebody should have consumed them; of the schedule there may always be some."""
    assert judge(fact("queue", name="chaos", messages=3)).faultless
    assert not judge(fact("queue", name="leader", messages=300)).faultless


def test_failovers() -> None:
    """From the fault to the next term; only of faults that befell a leader, and that cost it its lead."""
    report = judge(
        leads(1, A, 1.0, 2.0),
        leads(2, B, 2.5, 3.0),
        leads(3, A, 3.1, 9.0),
        fault("kill", 2.0, 2.6, A, 1),
        fault("kill", 3.0, 3.2, B, 2),
        fault("deaf", 4.0, 5.0, A, 3, link="broker"),
        fault("stop", 4.0, 5.0, B, None),
        fault("clock", 6.0, 7.0, A, 3),
    )
    assert report.failover_ms == {"kill": {"median": 300.0, "max": 500.0, "n": 2}}
    assert report.faults == {"kill": 2, "deaf": 1, "stop": 1, "clock": 1}


@pytest.mark.parametrize("kind", ["kill", "term", "stop", "terminate", "resign", "pg-restart", "pg-crash"])
def test_a_leader_that_nobody_follows(kind: str) -> None:
    """After each fault that costs a leader its lead there has to be a later term."""
    assert not judge(leads(1, A, 1.0, 9.0), fault(kind, 2.0, 2.1, None, 1)).faultless
    assert judge(leads(1, A, 1.0, 9.0), fault("relay", 2.0, 2.1, A, 1)).faultless


def test_a_run_that_shows_too_little() -> None:
    """It has to have so much of everything that it is about."""
    least = {"faults.terminate": 1, "slots.published": 1, "notifications.sent": 2, "leader_only.sent": 1}
    assert judge(GOOD, least=least).faultless
    for what, number in least.items():
        report = judge(GOOD, least=least | {what: 3})
        assert report.offences == [f"too little: {what} is {number}, and not 3"]


def test_what_is_awaited() -> None:
    """Everything of which a run has yet to come to its end; nobody waits for raw notifications."""
    told = [
        order("o1", 1.0),
        sent("chaos.hear", "m1"),
        sent("chaos.work", "w1"),
        *runs("chaos.handle", "o1", A, 1.0, 1.1),
        *runs("chaos.work", "w1", A, 1.0, None),
    ]
    assert awaited(told) == {("chaos.witness", "o1"), ("chaos.work", "w1")}
    published = [slot(1.0), slot(2.0), slot(3.0, "skipped"), *ticks(1.0)]
    assert awaited(published) == {("chaos.tick", ("each", round((NOON + 2.0) * 1e6)))}, "they have to come"
    alone = fact("sent", 1.0, task="chaos.witness", name="o2")
    assert awaited([alone, sent("chaos.lead", "l1")]) == {("chaos.witness", "o2"), ("chaos.lead", "l1")}
