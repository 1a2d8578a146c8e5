"""What becomes of leader-only tasks that end, or were to begin, after their worker's main loop has ended."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest

from celery_pgleader.tasks import queue_name
from tests.support.eventually import eventually
from tests.support.workers import PATIENCE, Worker, Workers

APP = "tests.acceptance.ends_late"
LATE = "late"


@pytest.fixture
def workers(tmp_path: Path, database: str) -> Iterator[Callable[..., Workers]]:
    """Make workers on a broker, with a pool."""
    groups: list[Workers] = []

    def make(broker: str, pool: str = "prefork", **environment: str) -> Workers:
        group = Workers(tmp_path, database, broker, pool, election=f"proj-{uuid.uuid4().hex}")
        group.environment |= environment
        groups.append(group)
        return group

    yield make
    for group in groups:
        group.end()


def pair(group: Workers, *options: str) -> tuple[Worker, Worker]:
    """Start two workers, and have the leader run a task that is not leader-only and keeps it from ending."""
    started = [group.start(name, *options, app=APP) for name in ("a", "b")]
    leader = group.await_leader()
    group.await_successors(1)
    (other,) = [worker for worker in started if worker is not leader]
    group.sender.send_task("ends_late.hold", queue=f"{leader.node}.dq2")
    group.await_fact("held")
    return leader, other


def send(group: Workers, key: str, seconds: float = 0.0, **options: Any) -> None:
    """Send a leader-only task."""
    group.sender.send_task("leading.finish", [key, seconds], queue=queue_name(group.election), **options)


def release(leader: Worker, folder: Path) -> None:
    """Let the leader end, and wait for that."""
    (folder / "release").touch()
    eventually(lambda: leader.process.poll() is not None, timeout=PATIENCE)


@pytest.mark.parametrize("broker", ["valkey", "rabbitmq"])
def test_a_run_that_was_not_confirmed_before_the_shutdown(
    broker: str, workers: Callable[..., Workers], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """It is acknowledged when it ends: nothing is left of it for the next leader, and nobody waits to be heard."""
    group = workers(request.getfixturevalue(broker), ENDS_LATE="it has begun")
    leader, other = pair(group)
    send(group, "late", 2.0, task_id=LATE)
    ended = group.await_fact("ended", key="late")
    assert (ended["node"], ended["trusted"]) == (leader.node, True)
    release(leader, tmp_path)
    send(group, "after")
    group.await_fact("ended", key="after", node=other.node)
    assert len(group.facts("began", key="late")) == 1


@pytest.mark.parametrize("stage", ["it was given to a process", "it waits for a process"])
def test_what_the_pool_has_not_begun_goes_back(
    stage: str, workers: Callable[..., Workers], tmp_path: Path, valkey: str
) -> None:
    """The next leader runs it while the last one has yet to end."""
    group = workers(valkey, ENDS_LATE=stage, LEADING_PREFETCH="4")
    leader, other = pair(group)
    send(group, "late", task_id=LATE)
    group.await_fact("gained", node=other.node)
    if stage == "it was given to a process" and celery.__version__ < "5.7":
        # Before, Celery tells the broker nothing of what processes answer until all have ended.
        release(leader, tmp_path)
    group.await_fact("ended", key="late", node=other.node)
    release(leader, tmp_path)
    assert len(group.facts("began", key="late")) == 1


def test_what_no_thread_has_begun_goes_back(workers: Callable[..., Workers], tmp_path: Path, valkey: str) -> None:
    """Whether it waits for a thread or for its time, the next leader runs it while the last one has yet to end."""
    group = workers(valkey, "threads", LEADING_PREFETCH="4")
    leader, other = pair(group, "-c", "1")
    send(group, "for a thread")
    send(group, "for its time", countdown=1.0)
    leader.await_line("Task leading.finish", 2)
    leader.send(signal.SIGTERM)
    for key in ("for a thread", "for its time"):
        group.await_fact("ended", key=key, node=other.node)
    release(leader, tmp_path)
    assert len(group.facts("began")) == 2
