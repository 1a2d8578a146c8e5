"""Why an entry was, or was not, run: each situation is made for real, then explained."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually
from tests.support.operating import Operator
from tests.support.workers import PATIENCE, Workers

ENTRIES: dict[str, dict[str, Any]] = {
    "fast": {"schedule": 1.0},
    # Longer than it takes to ask about one of their slots, and to start a worker.
    "rare": {"schedule": 12.0},
    "strict": {"schedule": 12.0},
    "long": {"schedule": 1.0, "args": [3]},
    "nap": {"schedule": 1.0},
}
POLICIES = {"strict": {"misfire": "all", "misfire_grace": 1}, "long": {"overlap": "skip"}}


def run_beside_no_slot(operator: Operator, entry: str) -> None:
    """Ask for a run that is within no second of a slot: otherwise that slot would be explained."""
    far = "select 1 from pgleader.entries where entry = %s and next_slot between now() + %s and now() + %s"
    eventually(lambda: operator.query(far, entry, timedelta(seconds=5), timedelta(seconds=10)), timeout=PATIENCE)
    operator.say("run-now", entry)


def test_explain_finds_out_why_a_slot_was_or_was_not_run(tmp_path: Path, database: str, valkey: str) -> None:
    """In eight situations, in sentences that name the reason, the nodes and the policy."""
    with Workers(tmp_path, database, valkey, "threads") as group:
        group.plan(ENTRIES, POLICIES)
        explain_all(group, Operator(group))


def explain_all(group: Workers, operator: Operator) -> None:
    """Make each situation, and have it explained."""

    def slot(entry: str, condition: str) -> datetime | None:
        rows = operator.query(f"select min(slot) from pgleader.slots where entry = %s and {condition}", entry)
        found: datetime | None = rows[0][0]
        return found

    def await_slot(entry: str, condition: str) -> datetime:
        eventually(lambda: slot(entry, condition), timeout=PATIENCE)
        found = slot(entry, condition)
        assert found is not None
        return found

    def explain(entry: str, at: datetime, found: str, *words: str) -> None:
        when = at.replace(microsecond=0).isoformat()
        told = operator.ask("explain", entry, "--at", when)
        assert told["found"] == found, told
        for word in words:
            assert word in told["explanation"], told
        assert " ".join(operator.say("explain", entry, "--at", when).split()) == told["explanation"]

    first = group.start("a")
    on_time = await_slot("fast", "state = 'published' and settled_at < slot + interval '0.5 s'")
    explain("fast", on_time, "published", "on time", "by a@test (term 1)", "as task ")
    explain("long", await_slot("long", "reason = 'overlap'"), "overlap", "overlap = skip")
    operator.say("pause-entry", "nap")
    explain("nap", await_slot("nap", "reason = 'paused'"), "paused", "paused by an operator", "paused still")
    unknown = operator.ask("explain", "fats", code=1)
    assert unknown["found"] == "entry unknown"
    assert unknown["explanation"] == "no leader has an entry 'fats' in its schedule; did you mean 'fast'?"

    # Of `rare` and `strict` a slot comes up, and nobody is there; of `fast` several.
    published = "select count(*) from pgleader.slots where entry = 'strict' and state = 'published'"
    before = operator.query(published)
    eventually(lambda: operator.query(published) > before, timeout=PATIENCE)
    first.kill()
    overdue = "select next_slot from pgleader.entries where entry = 'rare' and next_slot < now() - interval '1.5 s'"
    eventually(lambda: operator.query(overdue), timeout=PATIENCE)
    ((due,),) = operator.query(overdue)
    explain("rare", due, "no leader", "nobody leads: a@test led last (term 1), was lost", "misfire = coalesce")
    second = group.start("b")
    group.await_fact("gained", node=second.node)
    explain("rare", await_slot("rare", "term = 2 and state = 'published'"), "published late", *failover())
    coalesced = await_slot("fast", "reason = 'coalesced'")
    ((run,),) = operator.query("select min(slot) from pgleader.slots where entry = 'fast' and slot > %s", coalesced)
    explain("fast", coalesced, "coalesced", f"that of {run:%Y-%m-%d %H:%M:%S} (misfire = coalesce)", *failover())
    explain("strict", await_slot("strict", "state = 'expired'"), "expired", "misfire_grace is 1 s", *failover())

    assert operator.ask("explain", "rare", "--at", "2099-01-01 10:00")["found"] == "not due yet"
    run_beside_no_slot(operator, "rare")
    explain("rare", await_slot("rare", "reason = 'run-now'"), "asked for by hand", "Somebody asked for a run")


def failover() -> tuple[str, str]:
    """Return what is told of the change of the leader."""
    return "a@test had led (term 1) and was lost", "b@test was elected (term 2) at "
