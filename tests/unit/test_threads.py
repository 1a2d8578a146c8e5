"""What threads hand over to each other."""

from __future__ import annotations

import logging

import pytest

from celery_pgleader.threads import Inbox

PATIENCE = 30.0


def test_inbox_keeps_order_and_survives_errors(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that is put into it ends it, not even `None`."""
    handled: list[object] = []

    def handle(item: object) -> None:
        if item == "bad":
            raise RuntimeError("broken")
        handled.append(item)

    inbox: Inbox[object] = Inbox("test", handle, logging.getLogger("test"))
    inbox.put(1)
    inbox.stop()
    inbox.start()
    inbox.start()
    for item in (None, "bad", 2):
        inbox.put(item)
    inbox.stop(PATIENCE)
    inbox.stop(PATIENCE)
    assert handled == [1, None, 2]
    assert "pgleader: test failed" in caplog.text
