"""What becomes of slots when workers, brokers and databases fail, with real ones of each."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest

from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.support.eventually import eventually
from tests.support.workers import PATIENCE, Worker, Workers

APP = "tests.acceptance.timetable"


@pytest.fixture
def timetable(tmp_path: Path, database: str) -> Iterator[Callable[..., Workers]]:
    """Make workers that run a schedule."""
    groups: list[Workers] = []

    def make(
        broker: str,
        entries: dict[str, Any],
        policies: dict[str, Any] | None = None,
        pool: str = "prefork",
        **settings: Any,
    ) -> Workers:
        group = Workers(tmp_path, database, broker, pool)
        schedule = {name: {"task": "timetable.run", **entry} for name, entry in entries.items()}
        group.environment["TIMETABLE"] = json.dumps(
            {"beat_schedule": schedule, "pgleader_schedule": policies or {}, **settings}
        )
        groups.append(group)
        return group

    yield make
    for group in groups:
        group.end()


def slots(database: str, entry: str) -> list[tuple[float, str, str | None, int]]:
    """Return an entry's slots in the ledger: when, the state, the reason, and how many."""
    with psycopg.connect(database, autocommit=True) as connection:
        if not (connection.execute("select to_regclass('pgleader.slots')").fetchone() or (None,))[0]:
            return []
        return connection.execute(
            "select extract(epoch from slot)::float, state, reason, slots from pgleader.slots"
            " where entry = %s order by slot",
            [entry],
        ).fetchall()


def published(database: str, entry: str) -> list[float]:
    """Return when the slots of an entry that were published were due."""
    return [at for at, state, _, _ in slots(database, entry) if state == "published"]


def await_published(database: str, entry: str, number: int) -> list[float]:
    """Wait until so many slots of an entry were published."""
    eventually(lambda: len(published(database, entry)) >= number, timeout=PATIENCE)
    return published(database, entry)


def other_than(group: Workers, leader: Worker) -> Worker:
    """Return the one that does not lead."""
    (other,) = [worker for worker in group.workers if worker is not leader]
    return other


def crash(group: Workers, folder: Path, when: str) -> dict[str, Any]:
    """Have whoever leads die at a point of its next publication; return what it was publishing."""
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


@pytest.mark.parametrize("scheduler", ["persistent", "django"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_incident_10_killed_around_the_publication(
    when: str, scheduler: str, timetable: Callable[..., Workers], valkey: str, database: str, tmp_path: Path
) -> None:
    """Between claim and publication, and between that and its mark: the same task id again, and one run."""
    group = timetable(valkey, {"tick": {"schedule": 2.0}}, {"tick": {"deduplicate": True}})
    crashes = tmp_path / "crashes"
    crashes.mkdir()
    group.environment["TIMETABLE_CRASHES"] = str(crashes)
    options = []
    if scheduler == "django":
        group.write("tick_settings", DJANGO_SETTINGS)
        group.environment["DJANGO_SETTINGS_MODULE"] = "tick_settings"
        subprocess.run([sys.executable, "-m", "django", "migrate", "-v", "0"], env=group.environment, check=True)
        options = ["--scheduler", "django"]
    for name in "ab":
        group.start(name, *options, app=APP)
    group.await_successors(1)
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
    assert {state for _, state, _, _ in slots(database, "tick")[:-1]} == {"published"}


def test_incident_11_stopped_across_a_due_minute(timetable: Callable[..., Workers], valkey: str, database: str) -> None:
    """And resumed: the slot is published once, by the next leader."""
    group = timetable(valkey, {"minute": {"schedule": "crontab"}})
    for name in "ab":
        group.start(name, app=APP)
    leader = group.await_leader()
    group.await_successors(1)
    leader.await_line("beat started")
    eventually(lambda: time.time() % 60 > 57, timeout=70)
    minute = time.time() // 60 * 60 + 60
    leader.send(signal.SIGSTOP)
    eventually(lambda: minute in published(database, "minute"), timeout=PATIENCE)
    leader.send(signal.SIGCONT)
    leader.await_line("lost leadership")
    group.await_successors(1)
    at = datetime.fromtimestamp(minute, timezone.utc).isoformat()
    assert len(group.facts("publishing", slot=at)) == 1
    group.await_fact("began", slot=at)
    assert len(group.facts("began", slot=at)) == 1


def test_incident_13_a_worker_without_the_schedule(
    timetable: Callable[..., Workers], valkey: str, database: str
) -> None:
    """It leads only while nobody else is there; it says what it lacks, and who has it all goes on at once."""
    group = timetable(valkey, {"tick": {"schedule": 1.0}})
    knowing = group.start("a", app=APP)
    await_published(database, "tick", 1)
    group.environment["TIMETABLE"] = json.dumps({"beat_schedule": {}})
    lacking = group.start("b", app=APP)
    eventually(lacking.is_ready, timeout=PATIENCE)
    knowing.send(signal.SIGTERM)
    lacking.await_line("not in this node's schedule, but in the last leader's: tick")
    knowing.wait()
    group.environment["TIMETABLE"] = json.dumps({"beat_schedule": {"tick": {"task": "timetable.run", "schedule": 1.0}}})
    group.start("c", app=APP)
    group.await_leader(other_than=lacking)
    known = len(published(database, "tick"))
    at = await_published(database, "tick", known + 2)
    assert {round(later - at[0], 6) % 1 for later in at} == {0.0}, "the interval has kept its phase"


def test_incident_16_deploys_more_frequent_than_the_period(
    timetable: Callable[..., Workers], valkey: str, database: str
) -> None:
    """The interval fires when it is due, counted from when it was first seen."""
    group = timetable(valkey, {})
    began = time.monotonic()
    worker = group.start("first", app=APP)
    worker.send(signal.SIGTERM)
    worker.wait()
    # However slow the machine is.
    period = max(8.0, round(6 * (time.monotonic() - began)))
    entries = {"long": {"task": "timetable.run", "schedule": period}}
    group.environment["TIMETABLE"] = json.dumps({"beat_schedule": entries})
    starts = 0
    while len(published(database, "long")) < 2:
        worker = group.start(f"v{starts}", app=APP)
        worker.await_line("beat started")
        starts += 1
        known, until = len(published(database, "long")), time.monotonic() + 1
        eventually(lambda: time.monotonic() > until or len(published(database, "long")) > known, timeout=PATIENCE)  # noqa: B023 - called before they change
        worker.send(signal.SIGTERM)
        worker.wait()
        group.workers.remove(worker)
        assert starts < 50
    first, second = published(database, "long")[:2]
    # A deploy that took longer than a period has skipped a slot, and said so.
    skipped = sum(count for at, state, _, count in slots(database, "long") if state == "skipped" and at > first)
    assert second - first == pytest.approx(period * (1 + skipped))
    assert starts > 3


@pytest.mark.parametrize("overlap", ["skip", "wait"])
def test_runs_do_not_overlap(overlap: str, timetable: Callable[..., Workers], valkey: str, database: str) -> None:
    """On whichever worker, and one that is killed in the middle holds up the next slot for no longer than that."""
    group = timetable(valkey, {"slow": {"schedule": 1.0, "kwargs": {"seconds": 2.5}}}, {"slow": {"overlap": overlap}})
    for name in "ab":
        group.start(name, app=APP)
    group.await_fact("ended", more_than=2)
    events = [fact["what"] for fact in group.facts() if fact["what"] in {"began", "ended"}]
    assert events == ["began", "ended"] * (len(events) // 2) + ["began"] * (len(events) % 2)
    reasons = {reason for _, state, reason, _ in slots(database, "slow") if state == "skipped"}
    assert reasons == ({"overlap"} if overlap == "skip" else {"coalesced"})
    began = len(group.facts("began"))
    running = group.await_fact("began", more_than=began)
    victim = next(worker for worker in group.workers if worker.node == running["node"])
    victim.send(signal.SIGKILL)
    victim.wait()
    group.workers.remove(victim)
    assert group.await_fact("began", more_than=began + 1)["node"] != victim.node


def test_a_second_delivery_is_not_run(timetable: Callable[..., Workers], rabbitmq: str) -> None:
    """With `deduplicate`, of a slot that has been run; one whose run died is run again, and so is a retry."""
    group = timetable(
        rabbitmq,
        {
            "quick": {"schedule": 1.0},
            "retried": {"schedule": 1.0, "task": "timetable.fail_once"},
        },
        {"*": {"deduplicate": True}},
        task_default_queue="timetable",
    )
    group.sender.conf.task_default_queue = "timetable"
    worker = group.start("a", app=APP)
    done = group.await_fact("ended")
    deliver(group, "quick", done["slot"], 0.0, done["id"], deduplicate=True)
    worker.await_line("is not run: it has been run already")
    assert len(group.facts("began", id=done["id"])) == 1
    group.await_fact("tried", retries=1)
    # A run that dies in the middle.
    slow = "33333333-3333-3333-3333-333333333333"
    deliver(group, "slow", done["slot"], 4.0, slow, deduplicate=True)
    group.await_fact("began", id=slow)
    worker.send(signal.SIGKILL)
    worker.wait()
    group.workers.remove(worker)
    group.start("b", app=APP)
    group.await_fact("began", id=slow, more_than=1)
    group.await_fact("ended", id=slow)


def deliver(group: Workers, entry: str, at: str, seconds: float, task_id: str, **policy: Any) -> None:
    """Deliver a slot's message, as a broker may do more than once."""
    header = {"election": "proj", "entry": entry, "at": at, "term": 1, "catch_up": False}
    policy = {"deduplicate": False, "overlap": "allow", **policy}
    group.sender.send_task(
        "timetable.run",
        kwargs={"seconds": seconds},
        task_id=task_id,
        headers={"pgleader_slot": {**header, **policy}},
    )


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_deliveries_while_a_run_goes_on(
    pool: str, timetable: Callable[..., Workers], valkey: str, database: str
) -> None:
    """Neither the second nor the third is run, also where all tasks share a process, and the end is remembered."""
    group = timetable(valkey, {}, {"x": {"deduplicate": True}}, pool)
    worker = group.start("a", app=APP)
    worker.await_line("beat started")
    at, task_id = "2026-01-01T00:00:00+00:00", "11111111-1111-1111-1111-111111111111"
    for number in range(3):
        deliver(group, "x", at, 3.0, task_id, deduplicate=True)
        group.await_fact("began", id=task_id)
        worker.await_line("is not run: it is running already", number)
    group.await_fact("ended", id=task_id)
    deliver(group, "x", at, 3.0, task_id, deduplicate=True)
    worker.await_line("is not run: it has been run already")
    assert len(group.facts("began", id=task_id)) == 1
    with psycopg.connect(database) as connection:
        assert connection.execute("select task_id::text from pgleader.finished").fetchall() == [(task_id,)]


def test_waiting_for_a_run_is_no_retry(timetable: Callable[..., Workers], valkey: str) -> None:
    """However often it waits, none of the attempts that the task allows itself is used up."""
    group = timetable(valkey, {}, {"x": {"overlap": "wait"}})
    worker = group.start("a", app=APP)
    worker.await_line("beat started")
    deliver(group, "x", "2026-01-01T00:00:00+00:00", 7.0, "11111111-1111-1111-1111-111111111111", overlap="wait")
    group.await_fact("began")
    deliver(group, "x", "2026-01-01T00:00:10+00:00", 0.0, "22222222-2222-2222-2222-222222222222", overlap="wait")
    group.await_fact("ended", id="22222222-2222-2222-2222-222222222222")
    assert [fact["what"] for fact in group.facts() if fact["what"] in {"began", "ended"}] == ["began", "ended"] * 2


def test_missed_slots(timetable: Callable[..., Workers], valkey: str, database: str) -> None:
    """With nobody there for a while, `all` runs each, oldest first, `coalesce` the newest, `skip` none that is late."""
    group = timetable(
        valkey,
        {name: {"schedule": 1.0} for name in ("each", "newest", "prompt")},
        {"each": {"misfire": "all"}, "prompt": {"misfire": "skip", "misfire_grace": 0.5}},
    )
    worker = group.start("a", app=APP)
    await_published(database, "each", 1)
    worker.send(signal.SIGKILL)
    worker.wait()
    group.workers.remove(worker)
    gone_at = time.time()
    eventually(lambda: time.time() > gone_at + 3, timeout=PATIENCE)
    group.start("b", app=APP)
    back_at = time.time()
    eventually(
        lambda: all(published(database, name)[-1:] > [back_at + 1] for name in ("each", "newest", "prompt")),
        timeout=PATIENCE,
    )
    each = published(database, "each")
    assert [round(later - sooner, 3) for sooner, later in itertools.pairwise(each)] == [1.0] * (len(each) - 1)
    late = [fact["slot"] for fact in group.facts("publishing", entry="each")]
    assert late == sorted(late)
    assert ("skipped", "coalesced") in {(state, reason) for _, state, reason, _ in slots(database, "newest")}
    assert ("expired", "misfire_grace") in {(state, reason) for _, state, reason, _ in slots(database, "prompt")}
    for name in ("each", "newest", "prompt"):
        rows = slots(database, name)
        assert rows[-1][0] - rows[0][0] == pytest.approx(sum(count for *_, count in rows[:-1])), "no slot unaccounted"


def test_the_broker_is_away(timetable: Callable[..., Workers], own_valkey: EmbeddedValkey, database: str) -> None:
    """Slots go on being claimed, the newest is published when it is back, and a stop takes no longer."""
    group = timetable(
        own_valkey.url, {"tick": {"schedule": 1.0}, "each": {"schedule": 1.0}}, {"each": {"misfire": "all"}}
    )
    # It runs nothing: Celery's own worker may end if the broker goes while it acknowledges (docs/reliability.md).
    worker = group.start("a", "-Q", "idle", app=APP)
    await_published(database, "tick", 1)
    own_valkey.stop()
    before = len(slots(database, "tick"))
    eventually(lambda: len(slots(database, "tick")) > before + 3, timeout=PATIENCE)
    assert any(state == "claimed" for _, state, _, _ in slots(database, "tick"))
    own_valkey.start()
    back_at = time.time()
    eventually(lambda: published(database, "each")[-1:] > [back_at], timeout=PATIENCE)
    eventually(lambda: published(database, "tick")[-1:] > [back_at], timeout=PATIENCE)
    each = published(database, "each")
    assert [round(later - sooner, 3) for sooner, later in itertools.pairwise(each)] == [1.0] * (len(each) - 1)
    assert ("skipped", "coalesced") in {(state, reason) for _, state, reason, _ in slots(database, "tick")}
    own_valkey.stop()
    before = len(slots(database, "tick"))
    eventually(lambda: len(slots(database, "tick")) > before + 1, timeout=PATIENCE)
    worker.send(signal.SIGTERM)
    worker.await_line("beat stopped")


HANGING = """
import os, threading
from celery.beat import Scheduler
from celery_pgleader.beat import LeaderBeat
from tests.acceptance.timetable import app
from tests.acceptance.proj import tell

LeaderBeat.__init__.__kwdefaults__["patience"] = 2.0

class Raising(Scheduler):
    @property
    def schedule(self):
        if os.path.exists(os.environ["UNWELL"] + "." + os.environ["UNWELL_NODE"]):
            tell("unwell", node=os.environ["UNWELL_NODE"])
            raise RuntimeError("the schedule is broken")
        return self.data

    @schedule.setter
    def schedule(self, value):
        self.data = value

class Hanging(Scheduler):
    def is_due(self, entry):
        if os.path.exists(os.environ["UNWELL"] + "." + os.environ["UNWELL_NODE"]):
            tell("unwell", node=os.environ["UNWELL_NODE"])
            threading.Event().wait()
        return super().is_due(entry)
"""


@pytest.mark.parametrize("kind", ["Raising", "Hanging"])
def test_incident_7_a_scheduler_that_is_unwell_moves_the_lead(
    kind: str, timetable: Callable[..., Workers], valkey: str, database: str, tmp_path: Path
) -> None:
    """One that raises at once, one that hangs when it has done so for long enough (river#1161, procrastinate#1463)."""
    group = timetable(valkey, {"tick": {"schedule": 1.0}})
    group.write("unwell", HANGING)
    group.environment["UNWELL"] = str(tmp_path / "unwell")
    for name in "ab":
        group.environment["UNWELL_NODE"] = name
        group.start(name, "--scheduler", f"unwell:{kind}", app="unwell")
    leader = group.await_leader()
    group.await_successors(1)
    await_published(database, "tick", 1)
    (tmp_path / f"unwell.{leader.node[0]}").touch()
    other = other_than(group, leader)
    group.await_fact("gained", node=other.node)
    known = len(published(database, "tick"))
    at = await_published(database, "tick", known + 2)
    assert {round(later - at[0], 6) % 1 for later in at} == {0.0}
    reason = group.facts("lost", node=leader.node)[0]["reason"]
    assert reason.startswith("the beat has not moved" if kind == "Hanging" else "the beat failed"), reason


def test_beat_pods(timetable: Callable[..., Workers], valkey: str, database: str, tmp_path: Path) -> None:
    """`celery beat -S pgleader`, twice: one of them sends, and the other takes over."""
    group = timetable(valkey, {"tick": {"schedule": 1.0}})
    pods = []
    try:
        for name in "ab":
            with (tmp_path / f"pod-{name}.log").open("ab") as log:
                command = [sys.executable, "-m", "celery", "-A", APP, "beat", "-S", "pgleader", "-l", "INFO"]
                command += ["--pidfile", "", "-s", str(tmp_path / f"schedule-{name}")]
                pods.append(subprocess.Popen(command, env=group.environment, stdout=log, stderr=log))
        group.start("worker", app=APP, pgleader=False)
        await_published(database, "tick", 2)
        group.await_fact("began")
        (sender,) = {fact["pid"] for fact in group.facts("publishing")}
        leader = next(pod for pod in pods if pod.pid == sender)
        leader.send_signal(signal.SIGTERM)
        leader.wait(PATIENCE)
        eventually(lambda: {fact["pid"] for fact in group.facts("publishing")} == {pod.pid for pod in pods}, PATIENCE)
        ids = Counter(fact["slot"] for fact in group.facts("publishing"))
        assert set(ids.values()) == {1}
        with psycopg.connect(database) as connection:
            reasons = connection.execute("select reason from pgleader.terms where ended_at is not null").fetchall()
        assert reasons == [("stopped",)]
    finally:
        for pod in pods:
            pod.kill()
            pod.wait()


def test_a_role_that_may_not_create_the_schema(
    timetable: Callable[..., Workers], valkey: str, database: str, postgres: EmbeddedPostgres
) -> None:
    """The worker works on, says in one line what to run, and stands once it was run."""
    role = f"worker_{os.getpid()}"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"drop role if exists {role}")
        connection.execute(f"create role {role} login")
    group = timetable(valkey, {"tick": {"schedule": 1.0}})
    group.environment["PGLEADER_DATABASE_URL"] = database.replace("postgres@", f"{role}@")
    try:
        worker = group.start("a", app=APP)
        worker.await_line(f"role {role} may not change it")
        script = subprocess.run(
            [sys.executable, "-m", "celery", "-A", APP, "pgleader", "migrate", "--sql", "--role", role],
            env=group.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(script.encode())
        await_published(database, "tick", 1)
        group.await_fact("began")
    finally:
        group.end()
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f"drop owned by {role}")
            connection.execute(f"drop role {role}")
