"""Every pool, each way for a leader to go: the lead moves, and nobody's task is disturbed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pytest
from celery.utils.nodenames import worker_direct

from tests.support.eventually import eventually
from tests.support.workers import PATIENCE, Worker, Workers

POOLS = ["prefork", "threads", "solo", "gevent", "eventlet"]


@pytest.fixture
def start_workers(tmp_path: Path, database: str, valkey: str) -> Iterator[Callable[[str], Workers]]:
    """Make a group of workers of a pool, on Valkey."""
    groups: list[Workers] = []

    def start(pool: str) -> Workers:
        groups.append(Workers(tmp_path, database, valkey, pool))
        return groups[-1]

    yield start
    for group in groups:
        group.end()


def two_workers(group: Workers) -> tuple[Worker, Worker]:
    """Start two workers; return the leader and the other, once it is next in line."""
    pair = [group.start(name) for name in ("a", "b")]
    leader = group.await_leader()
    group.await_successors(1)
    (other,) = [worker for worker in pair if worker is not leader]
    return leader, other


def ended_after(workers: list[Worker]) -> dict[Worker, float]:
    """Wait for workers to end; return how many seconds each took."""
    began = time.monotonic()
    seconds: dict[Worker, float] = {}

    def all_ended() -> bool:
        for worker in workers:
            if worker not in seconds and worker.process.poll() is not None:
                seconds[worker] = time.monotonic() - began
        return len(seconds) == len(workers)

    try:
        eventually(all_ended, timeout=PATIENCE)
    except AssertionError:
        late = [f"{worker.node}: {worker.tell_where()}" for worker in workers if worker not in seconds]
        raise AssertionError("not ended: " + "\n".join(late)) from None
    return seconds


def keep_busy(group: Workers, worker: Worker, seconds: float) -> None:
    """Have a worker run a slow task of its own, and wait until that has begun."""
    group.send("slow", seconds, queue=worker_direct(worker.node))
    group.await_fact("slow began", node=worker.node)


@pytest.mark.parametrize("pool", POOLS)
def test_term(pool: str, start_workers: Callable[[str], Workers]) -> None:
    """TERM: the lead moves at once, while the leader's running task comes to its end."""
    group = start_workers(pool)
    leader, other = two_workers(group)
    group.await_fact("tick")
    keep_busy(group, leader, 4.0)
    keep_busy(group, other, 4.0)
    leader.send(signal.SIGTERM)
    gained = group.await_fact("gained", node=other.node)
    ended = group.await_fact("slow ended", node=leader.node)
    assert gained["at"] < ended["at"], "nothing leader-only ran, so the lead had no reason to wait"
    group.await_fact("slow ended", node=other.node)
    leader.wait()
    ticks = len(group.facts("tick"))
    group.await_fact("tick", more_than=ticks + 1)
    assert [fact["reason"] for fact in group.facts("lost")] == ["stopped"]


@pytest.mark.parametrize("pool", POOLS)
def test_kill(pool: str, start_workers: Callable[[str], Workers]) -> None:
    """`kill -9`: the lead moves, and the other worker's running task is not disturbed."""
    group = start_workers(pool)
    leader, other = two_workers(group)
    keep_busy(group, other, 3.0)
    leader.send(signal.SIGKILL)
    group.await_fact("gained", node=other.node)
    group.await_fact("slow ended", node=other.node)
    group.await_fact("tick")
    group.send("lead", "after")
    assert group.await_fact("lead", key="after")["node"] == other.node


@pytest.mark.parametrize("pool", POOLS)
def test_quit(pool: str, start_workers: Callable[[str], Workers]) -> None:
    """QUIT: the lead moves with a cold shutdown too."""
    group = start_workers(pool)
    leader, other = two_workers(group)
    keep_busy(group, other, 3.0)
    leader.send(signal.SIGQUIT)
    group.await_fact("gained", node=other.node)
    leader.wait()
    group.await_fact("slow ended", node=other.node)
    group.await_fact("tick")


@pytest.mark.parametrize("pool", POOLS)
def test_the_shutdown_takes_no_longer(pool: str, start_workers: Callable[[str], Workers]) -> None:
    """An idle worker ends as fast with `--pgleader` as without, give or take a second."""
    group = start_workers(pool)
    # With green threads Celery's own shutdown takes from two to five seconds, as chance will have it.
    plain = [group.start(f"plain{number}", pgleader=False) for number in range(3)]
    standing = [group.start(f"standing{number}") for number in range(3)]
    group.await_leader()
    group.await_successors(2)
    for worker in (*plain, *standing):
        worker.send(signal.SIGTERM)
    seconds = ended_after([*plain, *standing])
    assert median(seconds[worker] for worker in standing) < max(seconds[worker] for worker in plain) + 1, seconds


@pytest.mark.parametrize("pool", POOLS)
def test_a_broker_restart(pool: str, tmp_path: Path, database: str, own_valkey: object) -> None:
    """The broker restarts: the lead stays, tasks in progress end, ticks and leader-only tasks go on."""
    group = Workers(tmp_path, database, own_valkey.url, pool)  # type: ignore[attr-defined]
    try:
        leader, other = two_workers(group)
        keep_busy(group, leader, 3.0)
        keep_busy(group, other, 3.0)
        own_valkey.restart()  # type: ignore[attr-defined]
        for worker in (leader, other):
            group.await_fact("slow ended", node=worker.node)
        ticks = len(group.facts("tick"))
        group.await_fact("tick", more_than=ticks + 1)
        group.send("lead", "after")
        assert group.await_fact("lead", key="after")["node"] == leader.node
        assert len(group.facts("gained")) == 1
        assert not group.facts("lost")
    finally:
        group.end()


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_leader_only_task_holds_the_lead(pool: str, start_workers: Callable[[str], Workers]) -> None:
    """TERM while a leader-only task runs: the leader leads, and ticks, until it has ended."""
    group = start_workers(pool)
    leader, other = two_workers(group)
    group.send("slow_lead", 4.0)
    group.await_fact("slow_lead began", node=leader.node)
    ticks = len(group.facts("tick"))
    leader.send(signal.SIGTERM)
    ended = group.await_fact("slow_lead ended", node=leader.node)
    gained = group.await_fact("gained", node=other.node)
    assert gained["at"] > ended["at"]
    assert len([fact for fact in group.facts("tick")[ticks:] if fact["at"] < ended["at"]]) >= 2
    leader.wait()
    eventually(lambda: leader.process.returncode == 0, timeout=PATIENCE)
