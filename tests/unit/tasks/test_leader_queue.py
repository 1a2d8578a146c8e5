"""The leader queue of a worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state
from kombu.asynchronous.timer import scheduled

from celery_pgleader.election import Leadership
from celery_pgleader.tasks.leader_queue import LeaderQueue


@pytest.mark.parametrize("green", [False, True])
def test_scheduled_request_is_returned_by_a_follower(*, green: bool, received: Any) -> None:
    """With green threads it is the thread that is ended: nothing else keeps it from running the request."""
    cancelled: list[Any] = []
    entry: Any = SimpleNamespace(args=(received,))
    thread = SimpleNamespace(entry=entry, canceled=False)
    queue = [thread if green else scheduled(0.0, 6, entry)]
    timer = SimpleNamespace(schedule=SimpleNamespace(queue=queue), cancel=cancelled.append)
    consumer: Any = SimpleNamespace(
        app=None,
        timer=timer,
        qos=SimpleNamespace(decrement_eventually=lambda: None),
        task_consumer=SimpleNamespace(consuming_from=lambda _: False),
        call_soon=lambda call: call(),
    )
    LeaderQueue("leader-shop", Leadership()).attach(consumer)
    assert cancelled == [thread if green else entry]
    assert received.fates == [True]


def test_held_lists_unfinished_messages_of_the_queue() -> None:
    """Those delivered on this connection, and those that run since before it."""
    queue = LeaderQueue("leader-shop", Leadership())
    assert queue.held() is None, "without a connection"

    def message(tag: str, routing_key: str) -> Any:
        return SimpleNamespace(delivery_tag=tag, delivery_info={"routing_key": routing_key})

    delivered = {
        tag: message(tag, queue) for tag, queue in {"1": "leader-shop", "2": "celery", "4": "leader-shop"}.items()
    }
    consumer = SimpleNamespace(
        task_consumer=SimpleNamespace(channel=SimpleNamespace(qos=SimpleNamespace(_delivered=delivered, _dirty={"4"}))),
        call_soon=lambda _: None,
    )
    queue.attach(consumer)
    running = Running(message("3", "leader-shop"))
    state.active_requests.add(running)
    assert queue.held() == {"1", "3"}
    state.active_requests.discard(running)


class Running:
    """A request that runs."""

    def __init__(self, message: Any) -> None:
        """Come from a message."""
        self.message = message
