"""What a worker does with the message of a leader-only task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from celery import Celery

from celery_pgleader.tasks.strategy import leader_only


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
            leader_queue=SimpleNamespace(name="leader-shop"), leadership=SimpleNamespace(trusted=lambda: leads)
        )
        controller = SimpleNamespace(pgleader=node if takes_part else None)
        handle = leader_only(
            app.tasks["based"], app, SimpleNamespace(controller=controller, connection_errors=(OSError,))
        )
        return lambda message: handle(message, None, None, None, ())

    return make


def test_only_the_leader_runs_messages_of_the_leader_queue(handler: Callable[..., Callable[[Message], None]]) -> None:
    """A worker that leads no more returns them."""
    for leads, fate in ((True, "run"), (False, "returned")):
        message = Message("leader-shop")
        handler(takes_part=True, leads=leads)(message)
        assert message.fate == [fate]


def test_message_that_waited_in_rabbitmq_is_run(handler: Callable[..., Callable[[Message], None]]) -> None:
    """The routing key of a message that was sent with an `eta` begins with the time to wait, in bits."""
    message = Message("0." * 27 + "1.leader-shop")
    handler(takes_part=True, leads=True)(message)
    assert message.fate == ["run"]


@pytest.mark.parametrize("takes_part", [True, False])
def test_message_of_another_queue_is_forwarded(
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
    assert (sent, message.fate) == (["leader-shop"], ["acknowledged"])


def test_message_that_cannot_be_forwarded_is_returned(
    app: Celery,
    handler: Callable[..., Callable[[Message], None]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The worker continues."""

    @contextmanager
    def no_producer() -> Iterator[None]:
        raise OSError("the broker is away")
        yield

    monkeypatch.setattr(app, "producer_or_acquire", no_producer)
    message = Message("celery")
    handler(takes_part=True)(message)
    assert message.fate == ["returned"]
    assert "could not forward based[some id]" in caplog.text
