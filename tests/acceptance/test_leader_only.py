"""What becomes of leader-only tasks when the lead is lost, with real workers and brokers."""

from __future__ import annotations

import dataclasses
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import psycopg
import pytest
from celery import chain
from celery import group as group_of

from celery_pgleader.tasks import queue_name
from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.chaos.check import check
from tests.chaos.driver import run
from tests.chaos.scenarios import SCENARIOS
from tests.support.eventually import eventually
from tests.support.rabbitmq import QUORUM, RabbitMQ
from tests.support.workers import PATIENCE, Worker, Workers

APP = "tests.acceptance.leading"


@pytest.fixture
def leading(tmp_path: Path, database: str) -> Iterator[Callable[..., Workers]]:
    """Make workers on a broker, with a pool."""
    groups: list[Workers] = []

    def make(broker: str, pool: str = "prefork", **environment: str) -> Workers:
        # Of its own, so that what the workers of one test had not acknowledged is not run by those of the next.
        group = Workers(tmp_path, database, broker, pool, election=f"proj-{uuid.uuid4().hex}")
        group.environment |= environment
        groups.append(group)
        return group

    yield make
    for group in groups:
        group.end()


def pair(group: Workers, *options: str) -> tuple[Worker, Worker]:
    """Start two workers; return the leader and the other, once that is next in line."""
    workers = [group.start(name, *options, app=APP) for name in ("a", "b")]
    leader = group.await_leader()
    group.await_successors(1)
    (other,) = [worker for worker in workers if worker is not leader]
    leader.await_line("beat started")
    return leader, other


def send(group: Workers, task: str, key: str, seconds: float = 0.0, **options: Any) -> None:
    """Send a leader-only task, as a program would that knows nothing of the package."""
    group.sender.send_task(f"leading.{task}", [key, seconds], queue=queue_name(group.election), **options)


def end_session(group: Workers, database: str) -> None:
    """Have the leader lose its lock, while it lives on."""
    (seat,) = [seat for seat in group.seats() if seat.role == "leader"]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(%s)", (seat.backend_pid,))


def is_there(database: str, session: str) -> bool:
    """Tell whether Postgres has a session of that name."""
    with psycopg.connect(database) as connection:
        found = connection.execute("select 1 from pg_stat_activity where application_name = %s", [session])
        return found.fetchone() is not None


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
@pytest.mark.parametrize("broker", ["valkey", "rabbitmq"])
def test_what_has_not_begun_goes_back(
    broker: str, pool: str, leading: Callable[..., Workers], database: str, request: pytest.FixtureRequest
) -> None:
    """Prefetched, reserved, and waiting for its time: all of it runs on the next leader, once."""
    group = leading(request.getfixturevalue(broker), pool, LEADING_PREFETCH="4")
    leader, other = pair(group, "-c", "1")
    send(group, "finish", "running", 4.0)
    group.await_fact("began", key="running")
    keys = [f"waiting {number}" for number in range(3)]
    for key in keys:
        send(group, "finish", key)
    send(group, "finish", "later", countdown=3.0)
    leader.await_line("leading.finish", 1 if pool == "solo" else 4)
    end_session(group, database)
    group.await_fact("gained", node=other.node)
    for key in ("running", *keys, "later"):
        group.await_fact("ended", key=key)
    began = {fact["key"]: fact for fact in group.facts("began")}
    assert began["running"]["node"] == leader.node
    assert {began[key]["node"] for key in (*keys, "later")} == {other.node}
    assert len(group.facts("began")) == len(began), "each was run once"


def test_a_leader_that_is_killed_on_redis(leading: Callable[..., Workers], valkey: str) -> None:
    """The next one restores what it had taken, long before the visibility timeout of an hour."""
    group = leading(valkey)
    leader, other = pair(group)
    send(group, "finish", "interrupted", 3.0)
    group.await_fact("began", key="interrupted")
    leader.send(signal.SIGKILL)
    again = group.await_fact("began", key="interrupted", more_than=1)
    assert again["node"] == other.node
    gained = group.await_fact("gained", node=other.node)
    assert again["at"] - gained["at"] < PATIENCE / 2
    group.await_fact("ended", key="interrupted")


def test_nothing_is_restored_while_the_old_leader_lives(
    leading: Callable[..., Workers], valkey: str, database: str
) -> None:
    """Its run goes on, and is not begun a second time beside it."""
    group = leading(valkey)
    leader, other = pair(group)
    send(group, "finish", "running", 6.0)
    group.await_fact("began", key="running")
    end_session(group, database)
    group.await_fact("gained", node=other.node)
    ended = group.await_fact("ended", key="running")
    assert (ended["node"], ended["trusted"]) == (leader.node, False)
    send(group, "finish", "after")
    group.await_fact("ended", key="after")
    assert len(group.facts("began", key="running")) == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_the_next_leader_waits_for_runs_of_the_last(
    pool: str, leading: Callable[..., Workers], valkey: str, database: str
) -> None:
    """It leads at once, but its first leader-only task begins when the last one there has ended."""
    group = leading(valkey, pool)
    leader, other = pair(group)
    send(group, "finish", "old", 5.0)
    group.await_fact("began", key="old")
    end_session(group, database)
    gained = group.await_fact("gained", node=other.node)
    send(group, "finish", "new")
    began = group.await_fact("began", key="new", node=other.node)
    ended = group.await_fact("ended", key="old", node=leader.node)
    assert gained["at"] < ended["at"] < began["at"]
    assert not ended["trusted"]


def test_the_stale_leader(leading: Callable[..., Workers], valkey: str, database: str) -> None:
    """Stopped inside of a task and resumed after another has taken over: it is told, and its write fails."""
    group = leading(valkey)
    leader, other = pair(group)
    send(group, "write", "stale", 4.0)
    first = group.await_fact("began", key="stale")
    os.killpg(leader.process.pid, signal.SIGSTOP)
    gained = group.await_fact("gained", node=other.node)
    os.killpg(leader.process.pid, signal.SIGCONT)
    group.await_fact("stopped", key="stale")
    group.await_fact("fenced", key="stale")
    send(group, "write", "fresh", 0.0)
    written = group.await_fact("written", key="fresh")
    assert written["term"] == gained["term"] > first["term"]
    with psycopg.connect(database) as connection:
        terms = connection.execute("select distinct term from written").fetchall()
    assert terms == [(gained["term"],)]


def test_a_run_that_is_to_be_aborted(leading: Callable[..., Workers], valkey: str, database: str) -> None:
    """It is ended on the old leader, and begun again on the next."""
    group = leading(valkey)
    leader, other = pair(group)
    send(group, "abort", "long", 5.0)
    group.await_fact("began", key="long", node=leader.node)
    end_session(group, database)
    group.await_fact("began", key="long", node=other.node)
    ended = group.await_fact("ended", key="long")
    assert (ended["node"], ended["trusted"]) == (other.node, True)
    assert len(group.facts("ended")) == 1


def test_a_drain_is_bounded(leading: Callable[..., Workers], valkey: str, database: str) -> None:
    """A leader that shuts down stays for its leader-only tasks, but not for ever; nor are they taken from it then."""
    group = leading(valkey, PGLEADER_DRAIN_TIMEOUT="1")
    leader, other = pair(group)
    send(group, "finish", "long", 8.0)
    group.await_fact("began", key="long")
    leader.send(signal.SIGTERM)
    gained = group.await_fact("gained", node=other.node)
    # It is known to be there as long as it is, though it takes no part any more.
    eventually(lambda: is_there(database, f"pgleader leaving {leader.node}"), timeout=PATIENCE)
    ended = group.await_fact("ended", key="long")
    assert gained["at"] < ended["at"]
    leader.await_line("leaving although leader-only tasks have not ended within 1 s")
    eventually(lambda: leader.process.poll() is not None, timeout=PATIENCE)
    assert not is_there(database, f"pgleader leaving {leader.node}")
    send(group, "finish", "after")
    group.await_fact("ended", key="after", node=other.node)
    assert len(group.facts("began", key="long")) == 1


@pytest.mark.skipif(celery.__version__ < "5.7", reason="workers of before can only fork")
def test_spawned_processes(leading: Callable[..., Workers], valkey: str) -> None:
    """They know what they lead as well, and the worker knows of their runs."""
    group = leading(valkey)
    leader, other = pair(group, "--pool-start-method", "spawn")
    send(group, "finish", "spawned", 4.0)
    group.await_fact("began", key="spawned")
    leader.send(signal.SIGTERM)
    gained = group.await_fact("gained", node=other.node)
    ended = group.await_fact("ended", key="spawned")
    assert ended["at"] < gained["at"]
    assert ended["trusted"]
    # Workers that are killed would leave the semaphores of their pools behind.
    other.send(signal.SIGTERM)
    for worker in (leader, other):
        worker.wait()


def test_canvas_and_retries(leading: Callable[..., Workers], valkey: str) -> None:
    """Sent by a program without the package, to no queue in particular: all of it runs on the leader."""
    group = leading(valkey, LEADING_RESULTS=valkey)
    # It has to have one, but it is a worker that counts the members of the chord.
    group.sender.conf.update(result_backend="cache+memory://")
    leader, _ = pair(group)

    def finish(key: str) -> Any:
        return group.sender.signature("leading.finish", [key], immutable=True)

    canvas = group_of([finish("member 0"), finish("member 1")])
    chain(finish("link 0"), canvas, finish("link 2"), app=group.sender).apply_async()
    group.sender.send_task("leading.again", ["retried"])
    keys = ["link 0", "member 0", "member 1", "link 2", "retried 0", "retried 1"]
    for key in keys:
        assert group.await_fact("ended", key=key)["node"] == leader.node


@pytest.mark.xdist_group("rabbitmq")
def test_an_eta_on_quorum_queues(leading: Callable[..., Workers], rabbitmq: str, database: str) -> None:
    """There RabbitMQ itself lets the message wait; it comes to the leader queue, and to whoever leads by then."""
    group = leading(rabbitmq, LEADING_QUORUM="1")
    leader, other = pair(group)
    group.sender.conf.update(QUORUM)
    # Celery looks at the queues that the program knows of.
    leader_queue = queue_name(group.election)
    group.sender.amqp.queues.add(group.sender.amqp.queues.new_missing(leader_queue))
    for key, queue in (("straight", leader_queue), ("astray", "quorum")):
        group.sender.send_task("leading.finish", [key], queue=queue, countdown=6.0)
    end_session(group, database)
    group.await_fact("gained", node=other.node)
    for key in ("straight", "astray"):
        assert group.await_fact("ended", key=key)["node"] == other.node
    assert len(group.facts("began")) == 2
    assert "Task leading.finish[" not in leader.log.read_text(), "it waited in the broker"


def test_a_run_that_celery_has_lost_sight_of(leading: Callable[..., Workers], own_valkey: Any) -> None:
    """Celery forgets what a process of its pool has not confirmed when the broker goes; the run holds the lead."""
    group = leading(own_valkey.url)
    leader, other = pair(group, "-c", "1")
    send(group, "finish", "before")
    child = group.await_fact("began", key="before")["pid"]
    group.await_fact("ended", key="before")
    # What is sent to it now it takes up only when Celery has given up on it.
    os.kill(child, signal.SIGSTOP)
    send(group, "finish", "out of sight", 6.0)
    leader.await_line("leading.finish", 2)
    own_valkey.restart()
    leader.await_line("Connection to broker lost")
    leader.await_line("Connected to redis", 2)
    os.kill(child, signal.SIGCONT)
    group.await_fact("began", key="out of sight", node=leader.node)
    leader.send(signal.SIGTERM)
    gained = group.await_fact("gained", node=other.node)
    ended = group.await_fact("ended", key="out of sight", node=leader.node)
    assert ended["at"] < gained["at"]
    assert ended["trusted"]


def test_earlier_leaders_that_live_do_not_hold_up_what_another_had(
    leading: Callable[..., Workers], valkey: str, database: str
) -> None:
    """The run of one that led before goes on undisturbed; what the killed one ran is begun again."""
    # Nobody waits for the runs of others.
    group = leading(valkey, PGLEADER_DRAIN_TIMEOUT="0")
    first, _ = pair(group)
    group.start("c", app=APP)
    group.await_successors(2)
    send(group, "finish", "of the first", 8.0)
    group.await_fact("began", key="of the first")
    end_session(group, database)
    second = group.await_leader(other_than=first)
    send(group, "finish", "of the second", 2.0)
    group.await_fact("began", key="of the second", node=second.node)
    second.send(signal.SIGKILL)
    again = group.await_fact("began", key="of the second", more_than=1)
    ended = group.await_fact("ended", key="of the first")
    assert again["at"] < ended["at"], "the first was still at it"
    group.await_fact("ended", key="of the second", node=again["node"])
    assert len(group.facts("began", key="of the first")) == 1


def test_what_was_taken_before_the_broker_was_restarted(leading: Callable[..., Workers], own_valkey: Any) -> None:
    """What the leader had taken, and had no chance to give back, is restored in the same term."""
    group = leading(own_valkey.url, LEADING_PREFETCH="4")
    leader, _ = pair(group, "-c", "1")
    send(group, "finish", "running", 2.0)
    group.await_fact("began", key="running")
    keys = [f"waiting {number}" for number in range(3)]
    for key in keys:
        send(group, "finish", key)
    leader.await_line("leading.finish", 4)
    own_valkey.restart()
    for key in ("running", *keys):
        group.await_fact("ended", key=key, node=leader.node)
    assert len(group.facts("gained")) == 1


def check_chaos(postgres: EmbeddedPostgres, broker: EmbeddedValkey | RabbitMQ, folder: Path) -> None:
    """Send sixty while the lead changes and the broker is restarted: `--scenario leading` of the chaos, in short."""
    faults = ("kill", "term", "terminate", "broker-restart")
    scenario = dataclasses.replace(
        SCENARIOS["leading"], faults=faults, times=len(faults), seconds=15.0, calling={"chaos.lead": 0.25}
    )
    report = check(run(scenario, postgres, broker, folder, seed=5))
    # As text, which is shown whole.
    assert report.faultless, str(vars(report))
    assert report.leader_only["sent"] >= 60
    assert report.faults == dict.fromkeys(faults, 1)
    # With the broker a worker may go, too.
    assert report.terms["number"] >= 4


def test_none_is_lost_or_strays_on_valkey(
    tmp_path: Path, own_postgres: EmbeddedPostgres, own_valkey: EmbeddedValkey
) -> None:
    """All run, on the leader only, and again only where the run had died."""
    check_chaos(own_postgres, own_valkey, tmp_path)


@pytest.mark.xdist_group("rabbitmq")
def test_none_is_lost_or_strays_on_rabbitmq(
    tmp_path: Path, own_postgres: EmbeddedPostgres, shared_rabbitmq: RabbitMQ
) -> None:
    """All run, on the leader only, and again only where the run had died."""
    check_chaos(own_postgres, shared_rabbitmq, tmp_path)
