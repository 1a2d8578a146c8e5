"""What becomes of leader-only tasks when the lead is lost, with real workers and brokers."""

from __future__ import annotations

import dataclasses
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import celery
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
from tests.support.workers import PATIENCE, Workers


@pytest.fixture
def leading(tmp_path: Path, database: str) -> Iterator[Callable[..., Workers]]:
    """Make workers on a broker, with a pool, whose app has no schedule."""
    stack = ExitStack()

    def make(broker: str, pool: str = "prefork", *, environment: dict[str, str] | None = None, **sets: Any) -> Workers:
        # Of its own, so that what the workers of one test had not acknowledged is not run by those of the next.
        group = stack.enter_context(Workers(tmp_path, database, broker, pool, election=f"proj-{uuid.uuid4().hex}"))
        group.environment |= environment or {}
        group.configure(beat_schedule={}, **sets)
        return group

    with stack:
        yield make


def is_there(group: Workers, session: str) -> bool:
    """Tell whether Postgres has a session of that name."""
    return bool(group.query("select 1 from pg_stat_activity where application_name = %s", session))


@pytest.mark.parametrize(("broker", "pool"), [("valkey", "prefork"), ("rabbitmq", "threads"), ("valkey", "solo")])
def test_next_leader_runs_tasks_that_had_not_begun(
    broker: str, pool: str, leading: Callable[..., Workers], request: pytest.FixtureRequest
) -> None:
    """Prefetched, reserved, and waiting for its time: all of it runs there, once."""
    group = leading(request.getfixturevalue(broker), pool, worker_prefetch_multiplier=4)
    leader, other = group.pair("-c", "1")
    group.send_to_leader("lead", "running", "gate")
    group.await_fact("began", key="running")
    keys = [f"waiting {number}" for number in range(3)]
    for key in keys:
        group.send_to_leader("lead", key)
    group.send_to_leader("lead", "later", countdown=3.0)
    leader.await_line("proj.lead", 1 if pool == "solo" else 4)
    group.end_session()
    group.await_fact("gained", node=other.node)
    group.open("gate")
    for key in ("running", *keys, "later"):
        group.await_fact("ended", key=key)
    began = {fact["key"]: fact for fact in group.facts("began")}
    assert began["running"]["node"] == leader.node
    assert {began[key]["node"] for key in (*keys, "later")} == {other.node}
    assert len(group.facts("began")) == len(began), "each was run once"


def test_next_leader_restores_messages_of_killed_leader(leading: Callable[..., Workers], valkey: str) -> None:
    """On Redis, long before the visibility timeout of an hour."""
    group = leading(valkey)
    leader, other = group.pair()
    group.send_to_leader("lead", "interrupted", "gate")
    group.await_fact("began", key="interrupted")
    leader.kill()
    again = group.await_fact("began", key="interrupted", more_than=1)
    assert again["node"] == other.node
    group.open("gate")
    group.await_fact("ended", key="interrupted")


def test_nothing_is_restored_while_the_old_leader_lives(leading: Callable[..., Workers], valkey: str) -> None:
    """Its run goes on, and is not begun a second time beside it."""
    group = leading(valkey)
    leader, other = group.pair()
    group.send_to_leader("lead", "running", 5.0)
    group.await_fact("began", key="running")
    group.end_session()
    group.await_fact("gained", node=other.node)
    ended = group.await_fact("ended", key="running")
    assert (ended["node"], ended["trusted"]) == (leader.node, False)
    group.send_to_leader("lead", "after")
    group.await_fact("ended", key="after")
    assert len(group.facts("began", key="running")) == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_next_leader_waits_for_runs_of_the_last(pool: str, leading: Callable[..., Workers], valkey: str) -> None:
    """It leads at once, but its first leader-only task begins when the last one there has ended."""
    group = leading(valkey, pool)
    leader, other = group.pair()
    group.send_to_leader("lead", "old", "gate")
    group.await_fact("began", key="old")
    group.end_session()
    gained = group.await_fact("gained", node=other.node)
    group.send_to_leader("lead", "new")
    other.await_line("proj.lead")
    assert not group.facts("began", key="new")
    group.open("gate")
    began = group.await_fact("began", key="new", node=other.node)
    ended = group.await_fact("ended", key="old", node=leader.node)
    assert gained["at"] < ended["at"] < began["at"]
    assert not ended["trusted"]


def test_write_of_stale_leader_fails(leading: Callable[..., Workers], valkey: str) -> None:
    """Stopped inside of a task and resumed after another has taken over, it is told as well."""
    group = leading(valkey)
    leader, other = group.pair()
    group.send_to_leader("write", "stale", "gate")
    first = group.await_fact("began", key="stale")
    leader.send(signal.SIGSTOP, group=True)
    gained = group.await_fact("gained", node=other.node)
    leader.send(signal.SIGCONT, group=True)
    group.open("gate")
    group.await_fact("stopped", key="stale")
    group.await_fact("fenced", key="stale")
    group.send_to_leader("write", "fresh")
    written = group.await_fact("written", key="fresh")
    assert written["term"] == gained["term"] > first["term"]
    assert group.query("select distinct term from written") == [(gained["term"],)]


def test_aborted_run_begins_again_on_the_next_leader(leading: Callable[..., Workers], valkey: str) -> None:
    """It is ended on the old leader."""
    group = leading(valkey)
    leader, other = group.pair()
    group.send_to_leader("abort", "long", "gate")
    group.await_fact("began", key="long", node=leader.node)
    group.end_session()
    group.await_fact("began", key="long", node=other.node)
    group.open("gate")
    ended = group.await_fact("ended", key="long")
    assert (ended["node"], ended["trusted"]) == (other.node, True)
    assert len(group.facts("ended")) == 1


def test_drain_is_bounded(leading: Callable[..., Workers], valkey: str) -> None:
    """A leader that shuts down stays for its leader-only tasks, but not for ever; nor are they taken from it then."""
    group = leading(valkey, environment={"PGLEADER_DRAIN_TIMEOUT": "1"})
    leader, other = group.pair()
    group.send_to_leader("lead", "long", "gate")
    group.await_fact("began", key="long")
    leader.send(signal.SIGTERM)
    group.await_fact("gained", node=other.node)
    # It is known to be there as long as it is, though it takes no part any more.
    eventually(lambda: is_there(group, f"pgleader leaving {leader.node}"), timeout=PATIENCE)
    assert not group.facts("ended")
    group.open("gate")
    group.await_fact("ended", key="long")
    leader.await_line("leaving although leader-only tasks have not ended within 1 s")
    leader.await_end()
    assert not is_there(group, f"pgleader leaving {leader.node}")
    group.send_to_leader("lead", "after")
    group.await_fact("ended", key="after", node=other.node)
    assert len(group.facts("began", key="long")) == 1


@pytest.mark.skipif(celery.__version__ < "5.7", reason="workers of before can only fork")
def test_spawned_processes_know_what_they_lead(leading: Callable[..., Workers], valkey: str) -> None:
    """And the worker knows of their runs."""
    group = leading(valkey)
    leader, other = group.pair("--pool-start-method", "spawn")
    group.send_to_leader("lead", "spawned", 4.0)
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


def test_canvas_and_retries_run_on_the_leader(leading: Callable[..., Workers], valkey: str) -> None:
    """Sent by a program without the package, to no queue in particular."""
    group = leading(valkey, result_backend=valkey)
    # It has to have one, but it is a worker that counts the members of the chord.
    group.sender.conf.update(result_backend="cache+memory://")
    leader, _ = group.pair()

    def lead(key: str) -> Any:
        return group.sender.signature("proj.lead", [key], immutable=True)

    canvas = group_of([lead("member 0"), lead("member 1")])
    chain(lead("link 0"), canvas, lead("link 2"), app=group.sender).apply_async()
    group.send("again", "retried")
    keys = ["link 0", "member 0", "member 1", "link 2", "retried 0", "retried 1"]
    for key in keys:
        assert group.await_fact("ended", key=key)["node"] == leader.node


@pytest.mark.xdist_group("rabbitmq")
def test_eta_on_quorum_queues_is_waited_for_in_the_broker(leading: Callable[..., Workers], rabbitmq: str) -> None:
    """The message comes to the leader queue then, and to the node that leads by then."""
    group = leading(rabbitmq, **QUORUM)
    leader, other = group.pair()
    group.sender.conf.update(QUORUM)
    # Celery looks at the queues that the program knows of.
    leader_queue = queue_name(group.election)
    group.sender.amqp.queues.add(group.sender.amqp.queues.new_missing(leader_queue))
    for key, queue in (("straight", leader_queue), ("astray", "quorum")):
        group.send("lead", key, queue=queue, countdown=6.0)
    group.end_session()
    group.await_fact("gained", node=other.node)
    for key in ("straight", "astray"):
        assert group.await_fact("ended", key=key)["node"] == other.node
    assert len(group.facts("began")) == 2
    assert not leader.has_logged("Task proj.lead["), "it waited in the broker"


def test_run_that_celery_has_lost_sight_of_holds_the_lead(
    leading: Callable[..., Workers], own_valkey: EmbeddedValkey
) -> None:
    """Celery forgets what a process of its pool has not confirmed when the broker goes."""
    group = leading(own_valkey.url)
    leader, other = group.pair("-c", "1")
    group.send_to_leader("lead", "before")
    child = group.await_fact("began", key="before")["pid"]
    group.await_fact("ended", key="before")
    # What is sent to it now it takes up only when Celery has given up on it.
    os.kill(child, signal.SIGSTOP)
    group.send_to_leader("lead", "out of sight", 5.0)
    leader.await_line("proj.lead", 2)
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


def test_living_earlier_leaders_do_not_delay_tasks_of_a_killed_one(
    leading: Callable[..., Workers], valkey: str
) -> None:
    """The run of one that led before goes on undisturbed; what the killed one ran is begun again."""
    # Nobody waits for the runs of others.
    group = leading(valkey, environment={"PGLEADER_DRAIN_TIMEOUT": "0"})
    group.start_all("abc")
    first = group.await_leader()
    group.await_successors(2)
    group.send_to_leader("lead", "of the first", "gate")
    group.await_fact("began", key="of the first")
    group.end_session()
    second = group.await_leader(other_than=first)
    group.send_to_leader("lead", "of the second", "other gate")
    group.await_fact("began", key="of the second", node=second.node)
    second.kill()
    again = group.await_fact("began", key="of the second", more_than=1)
    assert not group.facts("ended"), "the first is still at it"
    for gate in ("gate", "other gate"):
        group.open(gate)
    group.await_fact("ended", key="of the first")
    group.await_fact("ended", key="of the second", node=again["node"])
    assert len(group.facts("began", key="of the first")) == 1


def test_leader_gets_back_what_it_had_taken_before_the_broker_restarted(
    leading: Callable[..., Workers], own_valkey: EmbeddedValkey
) -> None:
    """It had no chance to give it back; it is restored in the same term."""
    group = leading(own_valkey.url, worker_prefetch_multiplier=4)
    leader, _ = group.pair("-c", "1")
    group.send_to_leader("lead", "running", "gate")
    group.await_fact("began", key="running")
    keys = [f"waiting {number}" for number in range(3)]
    for key in keys:
        group.send_to_leader("lead", key)
    leader.await_line("proj.lead", 4)
    own_valkey.restart()
    group.open("gate")
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


@pytest.mark.long
def test_none_is_lost_or_strays_on_rabbitmq(
    tmp_path: Path, own_postgres: EmbeddedPostgres, shared_rabbitmq: RabbitMQ
) -> None:
    """All run, on the leader only, and again only where the run had died."""
    check_chaos(own_postgres, shared_rabbitmq, tmp_path)
