"""Where the messages of leader-only tasks go, and what is done with those that went astray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_pgleader import LeaderOnlyTask
from celery_pgleader.tasks import route_leader_only_tasks
from celery_pgleader.tasks.strategy import leader_only


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """Give an app with a task of each kind."""
    monkeypatch.delenv("PGLEADER_ELECTION", raising=False)
    app = Celery("shop", broker="memory://", set_as_current=False)

    def work() -> None:
        """Do nothing."""

    register: Any = app.task
    register(work, name="based", base=LeaderOnlyTask, shared=False, lazy=False)
    register(work, name="marked", leader_only=True, shared=False, lazy=False)
    register(work, name="plain", shared=False, lazy=False)
    return app


def queue_of(app: Celery, name: str) -> Any:
    """Return the queue that a task asks for when it is sent."""
    task: Any = app.tasks[name]
    return task._get_exec_options().get("queue")  # noqa: SLF001 - what `apply_async` calls


def test_the_base_class_needs_nothing_else(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds the queue by the app's name, the setting, or the environment."""
    based: Any = app.tasks["based"]
    assert queue_of(app, "based") == "leader.shop"
    app.conf.pgleader_election = "bazaar"
    assert based.queue == "leader.bazaar"
    monkeypatch.setenv("PGLEADER_ELECTION", "fair")
    assert based.queue == "leader.fair"


def test_a_marked_task_is_routed(app: Celery) -> None:
    """Also if it was sent before; and no other task is."""
    assert queue_of(app, "marked") is None
    route_leader_only_tasks(app, "shop")
    assert queue_of(app, "marked") == "leader.shop"
    assert queue_of(app, "plain") is None
    assert app.tasks["marked"].Strategy == app.tasks["based"].Strategy


class Message:
    """A message, and what became of it."""

    def __init__(self, queue: str) -> None:
        """Come from a queue."""
        self.delivery_info = {"routing_key": queue}
        self.headers = {"id": "some id"}
        self.fate: list[str] = []

    def ack_log_error(self, *_: object) -> None:
        """Be done with."""
        self.fate.append("acknowledged")

    def reject_log_error(self, *_: object, requeue: bool) -> None:
        """Go back."""
        self.fate.append("returned" if requeue else "dropped")


@pytest.fixture
def handler(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[Message], None]]:
    """Make what handles messages in a worker that takes part, or not, and leads, or not."""
    monkeypatch.setattr(
        "celery.worker.strategy.default", lambda *_, **__: lambda message, *_: message.fate.append("run")
    )

    def make(*, takes_part: bool, leads: bool = False) -> Callable[[Message], None]:
        node = SimpleNamespace(
            leader_queue=SimpleNamespace(name="leader.shop"), leadership=SimpleNamespace(trusted=lambda: leads)
        )
        controller = SimpleNamespace(pgleader=node if takes_part else None)
        handle = leader_only(
            app.tasks["based"], app, SimpleNamespace(controller=controller, connection_errors=(OSError,))
        )
        return lambda message: handle(message, None, None, None, ())

    return make


def test_only_the_leader_runs_what_is_in_the_leader_queue(handler: Callable[..., Callable[[Message], None]]) -> None:
    """A worker that leads no more gives it back."""
    for leads, fate in ((True, "run"), (False, "returned")):
        message = Message("leader.shop")
        handler(takes_part=True, leads=leads)(message)
        assert message.fate == [fate]


@pytest.mark.parametrize("takes_part", [True, False])
def test_what_went_astray_is_forwarded(
    *, takes_part: bool, handler: Callable[..., Callable[[Message], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the leader, and by a worker that takes no part; it is acknowledged once it was sent."""
    sent: list[str] = []

    def republish(_producer: object, message: Message, *, exchange: str, routing_key: str) -> None:
        assert not message.fate
        sent.append(exchange + routing_key)

    monkeypatch.setattr("celery_pgleader.tasks.strategy.republish", republish)
    message = Message("celery")
    handler(takes_part=takes_part, leads=True)(message)
    assert (sent, message.fate) == (["leader.shop"], ["acknowledged"])


def test_what_cannot_be_forwarded_is_kept(
    app: Celery,
    handler: Callable[..., Callable[[Message], None]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes back to its queue, and the worker goes on."""

    @contextmanager
    def no_producer() -> Iterator[None]:
        raise OSError("the broker is away")
        yield

    monkeypatch.setattr(app, "producer_or_acquire", no_producer)
    message = Message("celery")
    handler(takes_part=True)(message)
    assert message.fate == ["returned"]
    assert "could not forward based[some id]" in caplog.text
