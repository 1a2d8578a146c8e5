"""What becomes of slots when workers, brokers and databases fail, with real ones of each."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from example_app.servers import EmbeddedValkey
from tests.support.eventually import eventually
from tests.support.operating import run_celery
from tests.support.workers import APP, PATIENCE, Workers

SLOTS = (
    "select extract(epoch from slot)::float, state, reason, slots from pgleader.slots where entry = %s order by slot"
)


@pytest.fixture
def timetable(tmp_path: Path, database: str) -> Iterator[Callable[..., Workers]]:
    """Make workers that run a schedule."""
    stack = ExitStack()

    def make(
        broker: str,
        entries: dict[str, Any],
        policies: dict[str, Any] | None = None,
        pool: str = "threads",
        **settings: Any,
    ) -> Workers:
        group = stack.enter_context(Workers(tmp_path, database, broker, pool))
        group.plan(entries, policies, **settings)
        return group

    with stack:
        yield make


def slots(group: Workers, entry: str) -> list[tuple[Any, ...]]:
    """Return an entry's slots in the ledger: when, the state, the reason, and how many."""
    return group.query(SLOTS, entry)


def published(group: Workers, entry: str) -> list[float]:
    """Return when the slots of an entry that were published were due."""
    return [at for at, state, _, _ in slots(group, entry) if state == "published"]


def await_published(group: Workers, entry: str, number: int) -> list[float]:
    """Wait until so many slots of an entry were published."""
    eventually(lambda: len(published(group, entry)) >= number, timeout=PATIENCE)
    return published(group, entry)


def crash(group: Workers, folder: Path, when: str) -> dict[str, Any]:
    """Have the leader die at a point of its next publication; return what it was publishing."""
    began = len(group.facts(f"crashed {when}"))
    (folder / when).touch()
    died = group.await_fact(f"crashed {when}", more_than=began)
    return [fact for fact in group.facts("publishing") if fact["pid"] == died["pid"] and fact["at"] <= died["at"]][-1]


DJANGO_SETTINGS = """
from psycopg.conninfo import conninfo_to_dict
import os
parts = conninfo_to_dict(os.environ["PGLEADER_DATABASE_URL"])
SECRET_KEY = "x"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat"]
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "USER": parts["user"],
                         "HOST": parts["host"], "PORT": parts["port"]}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""


@pytest.mark.parametrize(("when", "scheduler"), [("before", "django"), ("after", "persistent")])
def test_incident_10_slot_of_a_leader_that_dies_while_it_publishes_runs_once(
    when: str, scheduler: str, timetable: Callable[..., Workers], valkey: str, tmp_path: Path
) -> None:
    """Between claim and publication, and between that and its mark: the same task id again, and one run."""
    group = timetable(valkey, {"tick": {"schedule": 1.0}}, {"tick": {"deduplicate": True}})
    crashes = tmp_path / "crashes"
    crashes.mkdir()
    group.environment["PROJ_CRASHES"] = str(crashes)
    options = []
    if scheduler == "django":
        group.write("tick_settings", DJANGO_SETTINGS)
        group.environment["DJANGO_SETTINGS_MODULE"] = "tick_settings"
        subprocess.run([sys.executable, "-m", "django", "migrate", "-v", "0"], env=group.environment, check=True)
        options = ["--scheduler", "django"]
    group.pair(*options)
    died = crash(group, crashes, when)
    again = group.await_fact("publishing", slot=died["slot"], more_than=1)
    assert again["id"] == died["id"]
    assert again["pid"] != died["pid"]
    assert group.await_fact("began", slot=died["slot"])["id"] == died["id"]
    # Whatever comes again has come by the time that later slots have been run.
    done = len(group.facts("ended"))
    group.await_fact("ended", more_than=done + 2)
    runs = Counter(fact["slot"] for fact in group.facts("began"))
    assert set(runs.values()) == {1}, runs
    assert {state for _, state, _, _ in slots(group, "tick")[:-1]} == {"published"}


@pytest.mark.parametrize("schedule", [10.0, pytest.param("crontab", marks=pytest.mark.long)])
def test_incident_11_leader_stopped_across_a_due_instant_does_not_publish_when_it_wakes_up(
    schedule: float | str, timetable: Callable[..., Workers], valkey: str
) -> None:
    """The slot is published once, by the next leader."""
    group = timetable(valkey, {"rare": {"schedule": schedule}})
    leader, _ = group.pair()
    leader.await_line("beat started")
    registered = "select extract(epoch from next_slot)::float from pgleader.entries where next_slot > now() + %s"
    ((slot,),) = eventually(lambda: group.query(registered, timedelta(seconds=1)), timeout=PATIENCE)
    leader.send(signal.SIGSTOP)
    # Each minute is the rarest.
    eventually(lambda: slot in published(group, "rare"), timeout=2 * PATIENCE)
    leader.send(signal.SIGCONT)
    leader.await_line("lost leadership")
    group.await_successors(1)
    at = datetime.fromtimestamp(slot, timezone.utc).isoformat()
    assert len(group.facts("publishing", slot=at)) == 1
    group.await_fact("began", slot=at)
    assert len(group.facts("began", slot=at)) == 1


def test_incident_13_worker_without_the_schedule_leads_only_while_it_is_alone(
    timetable: Callable[..., Workers], valkey: str
) -> None:
    """It says what it lacks, and a worker that has it all goes on at once."""
    group = timetable(valkey, {"tick": {"schedule": 1.0}})
    group.environment["PGLEADER_POLL_INTERVAL"] = "1"
    knowing = group.start("a")
    await_published(group, "tick", 1)
    group.plan({})
    lacking = group.start("b")
    knowing.send(signal.SIGTERM)
    lacking.await_line("not in this node's schedule, but in the last leader's: tick")
    knowing.await_end()
    group.plan({"tick": {"schedule": 1.0}})
    group.start("c")
    group.await_leader(other_than=lacking)
    known = len(published(group, "tick"))
    at = await_published(group, "tick", known + 2)
    assert {round(later - at[0], 6) % 1 for later in at} == {0.0}, "the interval has kept its phase"


def test_incident_16_interval_fires_even_if_deploys_are_more_frequent(
    timetable: Callable[..., Workers], valkey: str
) -> None:
    """When it is due, counted from when it was first seen."""
    group = timetable(valkey, {}, pool="solo")
    began = time.monotonic()
    worker = group.start("first")
    worker.await_line("beat started")
    worker.send(signal.SIGTERM)
    worker.await_end()
    # However slow the machine is.
    period = max(3.0, round(2.5 * (time.monotonic() - began)))
    group.plan({"long": {"schedule": period}})
    # What was due has been published, and what is next has not.
    coming = "select 1 from pgleader.entries where entry = 'long' and next_slot > now()"
    starts = 0
    while len(published(group, "long")) < 2:
        worker = group.start(f"v{starts}")
        eventually(lambda: group.query(coming), timeout=PATIENCE)
        starts += 1
        worker.send(signal.SIGTERM)
        worker.await_end()
        group.workers.remove(worker)
        assert starts < 50
    first, second = published(group, "long")[:2]
    # A deploy that took longer than a period has skipped a slot, and said so.
    skipped = sum(count for at, state, _, count in slots(group, "long") if state == "skipped" and at > first)
    assert second - first == pytest.approx(period * (1 + skipped))
    assert starts > 1


@pytest.mark.parametrize("overlap", ["skip", "wait"])
def test_runs_of_an_entry_do_not_overlap(overlap: str, timetable: Callable[..., Workers], valkey: str) -> None:
    """On whichever worker; one that is killed in the middle holds up the next slot for no longer than that."""
    group = timetable(valkey, {"slow": {"schedule": 1.0, "args": [2.5]}}, {"slow": {"overlap": overlap}}, "prefork")
    group.pair()
    group.await_fact("ended", more_than=2)
    events = [fact["what"] for fact in group.facts() if fact["what"] in {"began", "ended"}]
    assert events == ["began", "ended"] * (len(events) // 2) + ["began"] * (len(events) % 2)
    reasons = {reason for _, state, reason, _ in slots(group, "slow") if state == "skipped"}
    assert reasons == ({"overlap"} if overlap == "skip" else {"coalesced"})
    began = len(group.facts("began"))
    running = group.await_fact("began", more_than=began)
    victim = next(worker for worker in group.workers if worker.node == running["node"])
    group.kill(victim)
    assert group.await_fact("began", more_than=began + 1)["node"] != victim.node


def test_second_delivery_of_a_slot_is_not_run(timetable: Callable[..., Workers], rabbitmq: str) -> None:
    """With `deduplicate`, of a slot that has been run; one whose run died is run again, and so is a retry."""
    group = timetable(
        rabbitmq,
        {
            "quick": {"schedule": 1.0},
            "retried": {"schedule": 1.0, "task": "proj.fail_once"},
        },
        {"*": {"deduplicate": True}},
        task_default_queue="timetable",
    )
    group.sender.conf.task_default_queue = "timetable"
    worker = group.start("a")
    done = group.await_fact("ended")
    deliver(group, "quick", done["slot"], 0.0, done["id"], deduplicate=True)
    worker.await_line("is not run: it has been run already")
    assert len(group.facts("began", id=done["id"])) == 1
    group.await_fact("tried", retries=1)
    # A run that dies in the middle.
    slow = "33333333-3333-3333-3333-333333333333"
    deliver(group, "slow", done["slot"], 4.0, slow, deduplicate=True)
    group.await_fact("began", id=slow)
    group.kill(worker)
    group.start("b")
    group.await_fact("began", id=slow, more_than=1)
    group.await_fact("ended", id=slow)


def deliver(group: Workers, entry: str, at: str, until: float | str, task_id: str, **policy: Any) -> None:
    """Deliver a slot's message, as a broker may do more than once."""
    header = {"election": "proj", "entry": entry, "at": at, "term": 1, "catch_up": False}
    policy = {"deduplicate": False, "overlap": "allow", **policy}
    group.sender.send_task(
        "proj.run",
        args=[until],
        task_id=task_id,
        headers={"pgleader_slot": {**header, **policy}},
    )


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_delivery_while_the_run_goes_on_is_not_run(pool: str, timetable: Callable[..., Workers], valkey: str) -> None:
    """Neither the second nor the third, also where all tasks share a process; and the end is remembered."""
    group = timetable(valkey, {}, {"x": {"deduplicate": True}}, pool)
    worker = group.start("a")
    worker.await_line("beat started")
    at, task_id = "2026-01-01T00:00:00+00:00", "11111111-1111-1111-1111-111111111111"
    for number in range(3):
        deliver(group, "x", at, "gate", task_id, deduplicate=True)
        group.await_fact("began", id=task_id)
        worker.await_line("is not run: it is running already", number)
    group.open("gate")
    group.await_fact("ended", id=task_id)
    deliver(group, "x", at, "gate", task_id, deduplicate=True)
    worker.await_line("is not run: it has been run already")
    assert len(group.facts("began", id=task_id)) == 1
    assert group.query("select task_id::text from pgleader.finished") == [(task_id,)]


def test_task_that_waits_for_a_run_uses_up_no_retry(timetable: Callable[..., Workers], valkey: str) -> None:
    """However often it waits, none of the attempts that the task allows itself is used up."""
    group = timetable(valkey, {}, {"x": {"overlap": "wait"}})
    worker = group.start("a")
    worker.await_line("beat started")
    deliver(group, "x", "2026-01-01T00:00:00+00:00", 7.0, "11111111-1111-1111-1111-111111111111", overlap="wait")
    group.await_fact("began")
    deliver(group, "x", "2026-01-01T00:00:10+00:00", 0.0, "22222222-2222-2222-2222-222222222222", overlap="wait")
    group.await_fact("ended", id="22222222-2222-2222-2222-222222222222")
    assert [fact["what"] for fact in group.facts() if fact["what"] in {"began", "ended"}] == ["began", "ended"] * 2


def test_misfire_decides_about_slots_that_were_missed(timetable: Callable[..., Workers], valkey: str) -> None:
    """`all` runs each, oldest first, `coalesce` the newest, `skip` none that is late."""
    group = timetable(
        valkey,
        {name: {"schedule": 1.0} for name in ("each", "newest", "prompt")},
        {"each": {"misfire": "all"}, "prompt": {"misfire": "skip", "misfire_grace": 0.5}},
    )
    worker = group.start("a")
    await_published(group, "each", 1)
    group.kill(worker)
    overdue = "select 1 from pgleader.entries where entry = 'newest' and next_slot < now() - interval '2.5 s'"
    eventually(lambda: group.query(overdue), timeout=PATIENCE)
    group.start("b")
    back_at = time.time()
    for name in ("each", "newest"):
        eventually(lambda name=name: published(group, name)[-1:] > [back_at], timeout=PATIENCE)  # type: ignore[misc]
    eventually(lambda: ("expired", "misfire_grace") in {row[1:3] for row in slots(group, "prompt")}, timeout=PATIENCE)
    each = published(group, "each")
    assert [round(later - sooner, 3) for sooner, later in itertools.pairwise(each)] == [1.0] * (len(each) - 1)
    late = [fact["slot"] for fact in group.facts("publishing", entry="each")]
    assert late == sorted(late)
    assert ("skipped", "coalesced") in {(state, reason) for _, state, reason, _ in slots(group, "newest")}
    for name in ("each", "newest", "prompt"):
        rows = slots(group, name)
        assert rows[-1][0] - rows[0][0] == pytest.approx(sum(count for *_, count in rows[:-1])), "no slot unaccounted"


def test_slots_are_claimed_while_the_broker_is_away(
    timetable: Callable[..., Workers], own_valkey: EmbeddedValkey
) -> None:
    """The newest is published when it is back, and a stop takes no longer."""
    group = timetable(
        own_valkey.url, {"tick": {"schedule": 1.0}, "each": {"schedule": 1.0}}, {"each": {"misfire": "all"}}
    )
    # It runs nothing: Celery's own worker may end if the broker goes while it acknowledges (docs/reliability.md).
    worker = group.start("a", "-Q", "idle")
    await_published(group, "tick", 1)
    own_valkey.stop()
    before = len(slots(group, "tick"))
    eventually(lambda: len(slots(group, "tick")) > before + 3, timeout=PATIENCE)
    assert any(state == "claimed" for _, state, _, _ in slots(group, "tick"))
    own_valkey.start()
    back_at = time.time()
    eventually(lambda: published(group, "each")[-1:] > [back_at], timeout=PATIENCE)
    eventually(lambda: published(group, "tick")[-1:] > [back_at], timeout=PATIENCE)
    each = published(group, "each")
    assert [round(later - sooner, 3) for sooner, later in itertools.pairwise(each)] == [1.0] * (len(each) - 1)
    assert ("skipped", "coalesced") in {(state, reason) for _, state, reason, _ in slots(group, "tick")}
    own_valkey.stop()
    before = len(slots(group, "tick"))
    eventually(lambda: len(slots(group, "tick")) > before + 1, timeout=PATIENCE)
    worker.send(signal.SIGTERM)
    worker.await_line("beat stopped")


HANGING = """
import os, threading
from celery.beat import Scheduler
from celery_pgleader.beat import LeaderBeat
from tests.acceptance.proj import app, tell

LeaderBeat.__init__.__kwdefaults__["patience"] = 2.0

class Raising(Scheduler):
    @property
    def schedule(self):
        if os.path.exists(f"{os.environ['UNWELL']}.{os.getpid()}"):
            tell("unwell")
            raise RuntimeError("the schedule is broken")
        return self.data

    @schedule.setter
    def schedule(self, value):
        self.data = value

class Hanging(Scheduler):
    def is_due(self, entry):
        if os.path.exists(f"{os.environ['UNWELL']}.{os.getpid()}"):
            tell("unwell")
            threading.Event().wait()
        return super().is_due(entry)
"""


@pytest.mark.parametrize("kind", ["Raising", "Hanging"])
def test_incident_7_scheduler_that_is_unwell_moves_the_lead(
    kind: str, timetable: Callable[..., Workers], valkey: str, tmp_path: Path
) -> None:
    """One that raises at once, one that hangs when it has done so for long enough (river#1161, procrastinate#1463)."""
    group = timetable(valkey, {"tick": {"schedule": 1.0}})
    group.write("unwell", HANGING)
    group.environment["UNWELL"] = str(tmp_path / "unwell")
    leader, other = group.pair("--scheduler", f"unwell:{kind}", app="unwell")
    await_published(group, "tick", 1)
    (tmp_path / f"unwell.{leader.process.pid}").touch()
    group.await_fact("gained", node=other.node)
    known = len(published(group, "tick"))
    at = await_published(group, "tick", known + 2)
    assert {round(later - at[0], 6) % 1 for later in at} == {0.0}
    reason = group.facts("lost", node=leader.node)[0]["reason"]
    assert reason.startswith("the beat has not moved" if kind == "Hanging" else "the beat failed"), reason


def test_beat_pods_take_over_from_each_other(timetable: Callable[..., Workers], valkey: str, tmp_path: Path) -> None:
    """Two of `celery beat -S pgleader`: one of them sends, until it ends."""
    group = timetable(valkey, {"tick": {"schedule": 1.0}})
    command = [sys.executable, "-m", "celery", "-A", APP, "beat", "-S", "pgleader", "-l", "INFO", "--pidfile", ""]
    pods = [group.launch(f"pod-{n}", [*command, "-s", str(tmp_path / f"schedule-{n}")]) for n in range(2)]
    group.start("worker", pgleader=False)
    await_published(group, "tick", 2)
    group.await_fact("began")
    (sender,) = {fact["pid"] for fact in group.facts("publishing")}
    leader = next(pod for pod in pods if pod.process.pid == sender)
    group.await_successors(1)
    leader.send(signal.SIGTERM)
    leader.await_end()
    pids = {pod.process.pid for pod in pods}
    eventually(lambda: {fact["pid"] for fact in group.facts("publishing")} == pids, timeout=PATIENCE)
    assert set(Counter(fact["slot"] for fact in group.facts("publishing")).values()) == {1}
    assert group.query("select reason from pgleader.terms where ended_at is not null") == [("stopped",)]


def test_worker_whose_role_may_not_create_the_schema_says_what_to_run(
    timetable: Callable[..., Workers], valkey: str, empty_database: str
) -> None:
    """It works on, and stands once that was run."""
    role = f"worker_{os.getpid()}"
    group = timetable(valkey, {"tick": {"schedule": 1.0}})
    group.database = empty_database
    group.environment["PGLEADER_DATABASE_URL"] = empty_database.replace("postgres@", f"{role}@")
    group.query(f"drop role if exists {role}")
    group.query(f"create role {role} login")
    try:
        worker = group.start("a")
        worker.await_line(f"role {role} may not change it")
        script = run_celery(group, "-A", APP, "pgleader", "migrate", "--sql", "--role", role).stdout
        group.query(script)
        await_published(group, "tick", 1)
        group.await_fact("began")
    finally:
        for worker in group.workers:
            worker.end()
        group.query(f"drop owned by {role}")
        group.query(f"drop role {role}")
