"""Fixtures of the tests of leader-only tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker import state

from celery_pgleader import LeaderOnlyTask
from celery_pgleader.tasks import request as request_module
from celery_pgleader.tasks import run_leadership, trust_page


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


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Have this process believe that it leads a term, or none."""

    def believe(term: int | None) -> None:
        for module in (trust_page, run_leadership, request_module):
            reader = SimpleNamespace(term=lambda: term, may_begin=lambda: term is not None, is_shut=lambda: False)
            monkeypatch.setattr(module, "reader", reader)

    return believe


@pytest.fixture
def received(app: Celery) -> Iterator[Any]:
    """Give a request for a leader-only task as a worker has it; what became of its message is on it."""
    fates: list[bool] = []
    message = SimpleNamespace(
        headers={"id": "some id", "task": "based"},
        delivery_info={"routing_key": "leader-shop"},
        properties={},
        body=((), {}, {}),
        content_type="application/json",
        content_encoding="utf-8",
        delivery_tag="tag",
        reject_log_error=lambda *_: fates.append(False),
        acknowledged=False,
    )
    request: Any = request_module.LeaderRequest(
        message,
        app=app,
        task=app.tasks["based"],
        decoded=True,
        body=((), {}, {}),
        on_reject=lambda *arguments: fates.append(arguments[-1]),
    )
    request.fates = fates
    state.task_reserved(request)
    yield request
    state.task_ready(request)
