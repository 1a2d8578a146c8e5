"""What becomes of leader-only tasks that end, or were to begin, after their worker's main loop has ended."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import celery
import pytest

from tests.support.workers import Worker, Workers

APP = "tests.acceptance.ends_late"
LATE = "late"


@pytest.fixture
def workers(tmp_path: Path, database: str) -> Iterator[Callable[..., Workers]]:
    """Make workers on a broker, with a pool."""
    stack = ExitStack()

    def make(broker: str, pool: str = "prefork", *, environment: dict[str, str] | None = None, **sets: Any) -> Workers:
        group = stack.enter_context(Workers(tmp_path, database, broker, pool, election=f"proj-{uuid.uuid4().hex}"))
        group.environment |= environment or {}
        group.configure(beat_schedule={}, worker_prefetch_multiplier=4, task_acks_late=True, **sets)
        return group

    with stack:
        yield make


def busy_pair(group: Workers, *options: str) -> tuple[Worker, Worker]:
    """Start two workers, and have the leader run a task that is not leader-only and keeps it from ending."""
    leader, other = group.pair(*options, app=APP)
    group.send("slow", "release", queue=f"{leader.node}.dq2")
    group.await_fact("slow began", node=leader.node)
    return leader, other


def release(group: Workers, leader: Worker) -> None:
    """Let the leader end, and wait for that."""
    group.open("release")
    leader.await_end()


@pytest.mark.parametrize("broker", ["valkey", "rabbitmq"])
def test_run_not_yet_confirmed_at_the_shutdown_is_acknowledged_when_it_ends(
    broker: str, workers: Callable[..., Workers], request: pytest.FixtureRequest
) -> None:
    """Nothing is left of it for the next leader, and nobody waits to be heard."""
    group = workers(request.getfixturevalue(broker), environment={"ENDS_LATE": "it has begun"})
    leader, other = busy_pair(group)
    group.send_to_leader("lead", "late", 2.0, task_id=LATE)
    ended = group.await_fact("ended", key="late")
    assert (ended["node"], ended["trusted"]) == (leader.node, True)
    release(group, leader)
    group.send_to_leader("lead", "after")
    group.await_fact("ended", key="after", node=other.node)
    assert len(group.facts("began", key="late")) == 1


@pytest.mark.parametrize("stage", ["it was given to a process", "it waits for a process"])
def test_next_leader_runs_what_no_process_had_begun(stage: str, workers: Callable[..., Workers], valkey: str) -> None:
    """While the last one has yet to end."""
    group = workers(valkey, environment={"ENDS_LATE": stage})
    leader, other = busy_pair(group)
    group.send_to_leader("lead", "late", task_id=LATE)
    group.await_fact("gained", node=other.node)
    if stage == "it was given to a process" and celery.__version__ < "5.7":
        # Before, Celery tells the broker nothing of what processes answer until all have ended.
        release(group, leader)
    group.await_fact("ended", key="late", node=other.node)
    release(group, leader)
    assert len(group.facts("began", key="late")) == 1


def test_next_leader_runs_what_no_thread_had_begun(workers: Callable[..., Workers], valkey: str) -> None:
    """Whether it waited for a thread or for its time, while the last one has yet to end."""
    group = workers(valkey, "threads")
    leader, other = busy_pair(group, "-c", "1")
    group.send_to_leader("lead", "for a thread")
    group.send_to_leader("lead", "for its time", countdown=1.0)
    leader.await_line("Task proj.lead", 2)
    leader.send(signal.SIGTERM)
    for key in ("for a thread", "for its time"):
        group.await_fact("ended", key=key, node=other.node)
    release(group, leader)
    assert len(group.facts("began")) == 2
