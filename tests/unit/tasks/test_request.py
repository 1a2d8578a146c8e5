"""Requests for leader-only tasks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state

from celery_pgleader.tasks import request as request_module


def test_request_is_returned_once_by_a_node_that_does_not_lead(
    received: Any, believed: Callable[[int | None], None]
) -> None:
    """The worker forgets it, also when a timer comes late with it."""
    believed(None)
    assert received.revoked()
    assert received.fates == [True]
    assert received not in state.reserved_requests
    # A timer that had it in hand comes late.
    believed(7)
    state.task_reserved(received)
    assert received.revoked()
    assert received.fates == [True]
    assert received not in state.reserved_requests
    assert "some id" not in state.requests


def test_leader_that_shuts_down_keeps_its_request(received: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it gave the message back while it consumes still, it would get it again."""
    reader = SimpleNamespace(term=lambda: 7, may_begin=lambda: False, is_shut=lambda: True)
    monkeypatch.setattr(request_module, "reader", reader)
    assert received.revoked()
    assert received.fates == []
    assert received in state.reserved_requests


def test_leader_runs_its_request(received: Any, believed: Callable[[int | None], None]) -> None:
    believed(7)
    assert not received.revoked()
    assert received.fates == []
    assert received in state.reserved_requests
