"""Every pool, each way for a leader to go: the lead moves, and nobody's task is disturbed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery.utils.nodenames import worker_direct

from example_app.servers import EmbeddedValkey
from tests.support.eventually import eventually
from tests.support.workers import PATIENCE, Worker, Workers

POOLS = ["prefork", "threads", "solo", "gevent", "eventlet"]
# A process of its own for tasks, a thread, and a green one.
KINDS = ["prefork", "threads", "gevent"]


@pytest.fixture
def group(pool: str, tmp_path: Path, database: str, valkey: str) -> Iterator[Workers]:
    """Give workers of a pool, on Valkey."""
    with Workers(tmp_path, database, valkey, pool) as made:
        yield made


def ended_after(workers: list[Worker]) -> dict[Worker, float]:
    """Wait for workers to end; return how many seconds each took."""
    began = time.monotonic()
    seconds: dict[Worker, float] = {}

    def all_ended() -> bool:
        for worker in workers:
            if worker not in seconds and worker.process.poll() is not None:
                seconds[worker] = time.monotonic() - began
        return len(seconds) == len(workers)

    eventually(all_ended, timeout=PATIENCE)
    return seconds


def keep_busy(group: Workers, worker: Worker) -> None:
    """Have a worker run a task of its own until the gate of its name is opened, and wait until that has begun."""
    group.send("slow", worker.node, queue=worker_direct(worker.node))
    group.await_fact("slow began", node=worker.node)


@pytest.mark.parametrize("pool", POOLS)
def test_leader_that_gets_term_hands_over_while_its_task_runs(group: Workers) -> None:
    """The task comes to its end, and so does that of the other; started as users start them."""
    leader, other = group.pair(quick=False)
    group.await_fact("tick")
    keep_busy(group, leader)
    keep_busy(group, other)
    leader.send(signal.SIGTERM)
    # Nothing leader-only runs, so the lead has no reason to wait.
    group.await_fact("gained", node=other.node)
    assert not group.facts("slow ended")
    for worker in (leader, other):
        group.open(worker.node)
        group.await_fact("slow ended", node=worker.node)
    leader.await_end()
    ticks = len(group.facts("tick"))
    group.await_fact("tick", more_than=ticks + 1)
    assert [fact["reason"] for fact in group.facts("lost")] == ["stopped"]


@pytest.mark.parametrize("pool", KINDS)
def test_next_worker_leads_when_the_leader_is_killed(group: Workers) -> None:
    """The task that it runs meanwhile is not disturbed."""
    leader, other = group.pair()
    keep_busy(group, other)
    leader.kill()
    group.await_fact("gained", node=other.node)
    group.open(other.node)
    group.await_fact("slow ended", node=other.node)
    group.await_fact("tick")
    group.send("lead", "after")
    assert group.await_fact("ended", key="after")["node"] == other.node


@pytest.mark.parametrize("pool", POOLS)
def test_next_worker_leads_when_the_leader_gets_quit(group: Workers) -> None:
    """With a cold shutdown, too, the other's task is not disturbed."""
    leader, other = group.pair()
    keep_busy(group, other)
    leader.send(signal.SIGQUIT)
    group.await_fact("gained", node=other.node)
    leader.await_end()
    group.open(other.node)
    group.await_fact("slow ended", node=other.node)
    group.await_fact("tick")


@pytest.mark.parametrize("pool", KINDS)
def test_shutdown_waits_for_nothing_with_pgleader(group: Workers) -> None:
    """Neither the leader's nor its follower's, beside workers that take no part and end at the same time."""
    # What waited would wait as long.
    group.environment["PGLEADER_TTL"] = group.environment["PGLEADER_DRAIN_TIMEOUT"] = str(5 * PATIENCE)
    plain = group.start_all(["plain0", "plain1"], pgleader=False)
    standing = group.start_all(["standing0", "standing1"])
    group.await_leader()
    group.await_successors(1)
    for worker in group.workers:
        worker.send(signal.SIGTERM)
    seconds = ended_after(group.workers)
    assert max(seconds[worker] for worker in standing) < 5 * max(seconds[worker] for worker in plain), seconds


@pytest.mark.parametrize("pool", KINDS)
def test_lead_stays_while_the_broker_restarts(
    pool: str, tmp_path: Path, database: str, own_valkey: EmbeddedValkey
) -> None:
    """Tasks in progress come to their end, and ticks and leader-only tasks go on."""
    with Workers(tmp_path, database, own_valkey.url, pool) as group:
        leader, other = group.pair()
        for worker in (leader, other):
            keep_busy(group, worker)
        own_valkey.restart()
        for worker in (leader, other):
            group.open(worker.node)
            group.await_fact("slow ended", node=worker.node)
        ticks = len(group.facts("tick"))
        group.await_fact("tick", more_than=ticks + 1)
        group.send("lead", "after")
        assert group.await_fact("ended", key="after")["node"] == leader.node
        assert len(group.facts("gained")) == 1
        assert not group.facts("lost")


@pytest.mark.parametrize("pool", KINDS)
def test_leader_that_gets_term_leads_until_its_leader_only_task_has_ended(group: Workers) -> None:
    """And ticks all the while."""
    leader, other = group.pair()
    group.send("lead", "held", "gate")
    group.await_fact("began", key="held", node=leader.node)
    leader.send(signal.SIGTERM)
    leader.await_line("Warm shutdown")
    ticks = len(group.facts("tick"))
    group.await_fact("tick", more_than=ticks + 1)
    assert not group.facts("gained", node=other.node)
    group.open("gate")
    ended = group.await_fact("ended", key="held", node=leader.node)
    gained = group.await_fact("gained", node=other.node)
    assert gained["at"] > ended["at"]
    assert leader.wait() == 0
