"""Dispatch of raw notifications."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_pgleader import Term
from celery_pgleader.channels import Route
from celery_pgleader.notifications.dispatcher import Dispatcher
from celery_pgleader.notifications.payload import Notification

TERM = Term(7, "shop", "a", 11)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """Give an app with a task, and an empty registry."""
    monkeypatch.setattr("celery_pgleader.notifications.registry._registered", [])
    app = Celery("shop", broker="memory://", set_as_current=False)

    @app.task(name="shop.on_order", shared=False)
    def on_order(order: object) -> None:
        """Handle an order."""

    return app


def test_failed_dispatch_keeps_no_other_task_from_its_notification(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a task cannot be sent or a payload cannot be read."""
    calls: list[tuple[Any, ...]] = []

    def fail(*_: object, **__: object) -> None:
        raise OSError("the broker is away")

    monkeypatch.setattr(app, "send_task", fail)
    monkeypatch.setattr(app.tasks["shop.on_order"], "apply_async", lambda args, headers: calls.append((args, headers)))
    dispatcher = Dispatcher(app, {"orders": (Route("shop.unknown"), Route("shop.on_order"))})
    dispatcher.dispatch(Notification("orders", "{", 11), TERM)
    dispatcher.dispatch(Notification("orders", "[", 11), TERM)
    dispatcher.dispatch(Notification("orders", '{"id": 1}', 11), TERM)
    headers = {"pgleader_channel": "orders", "pgleader_backend_pid": 11, "pgleader_term": 7}
    assert calls == [(({"id": 1},), headers)]
    assert caplog.text.count("dropped a notification on channel orders") == 1, "further ones are counted only"
    assert dispatcher.failures["orders", "undecodable"] == 4
    assert "could not send shop.unknown for channel orders" in caplog.text
