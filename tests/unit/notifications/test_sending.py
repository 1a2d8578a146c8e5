"""What `notify` sends, and what it refuses before anything is sent."""

from __future__ import annotations

import json
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


def test_notify_sends_one_statement() -> None:
    """With everything in parameters."""
    connection = Recorder()
    notify("orders", {"id": 1}, key="k", connection=connection)
    notify("orders", {"id": 1}, durable=False, connection=connection)
    (durable, raw) = connection.executed
    assert durable[0] == "select pgleader.notify(%(channel)s, %(payload)s::jsonb, %(key)s)"
    assert durable[1] == {"channel": "orders", "payload": '{"id":1}', "key": "k"}
    assert raw == ("select pg_notify(%(channel)s, %(payload)s)", {"channel": "orders", "payload": '{"id":1}'})


REFUSED = {
    "NUL": ("\0", "NUL"),
    "NUL behind a backslash": ({"a": ["x\\\0"]}, "NUL"),
    "NUL in a key": ({"\0": 1}, "NUL"),
    "surrogate": ("\ud800", "lone surrogate"),
    "surrogate in a key": ({"\udfff": 1}, "lone surrogate"),
    "NaN": (math.nan, "cannot be sent as JSON"),
    "infinity": (-math.inf, "cannot be sent as JSON"),
    "bytes": (b"bytes", "cannot be sent as JSON"),
    "tuple as a key": ({(1, 2): 3}, "cannot be sent as JSON"),
    "five thousand digits": (10**5_000, "cannot be sent as JSON"),
    "deep": (nested(DEEPEST + 1), f"deeper than {DEEPEST} levels"),
    "very deep": (nested(100_000), "cannot be sent as JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_payload_is_refused_with_a_reason(name: str) -> None:
    """Before the connection is touched."""
    payload, reason = REFUSED[name]
    connection = Recorder()
    with pytest.raises(NotificationError, match=reason):
        notify("orders", payload, connection=connection)
    assert connection.executed == []


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "\\", "\\\\", '\\"u0000', "\\n\\u0000"])
def test_text_that_only_looks_like_nul_is_sent(text: str) -> None:
    """Backslashes are text."""
    assert json.loads(encode_durable([text])) == [text]


def test_deepest_payload_is_sent() -> None:
    """Objects count as lists do."""
    assert encode_durable(nested(DEEPEST)) == "[" * DEEPEST + "]" * DEEPEST
    with pytest.raises(NotificationError):
        encode_durable({"a": nested(DEEPEST)})


@pytest.mark.parametrize("key", [1, "\0", "\ud800", b"k"])
def test_bad_key_is_refused(key: Any) -> None:
    """Postgres could not compare it."""
    connection = Recorder()
    with pytest.raises(NotificationError, match="key = "):
        notify("orders", 1, key=key, connection=connection)
    assert connection.executed == []


def test_raw_notification_with_a_key_is_refused() -> None:
    """Nothing would keep its order."""
    with pytest.raises(NotificationError, match="a raw notification has no key"):
        notify("orders", 1, key="k", durable=False, connection=Recorder())


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("channel", ["", "\0", "\ud800", "ü" * 32, None, 1])
def test_bad_channel_is_refused(channel: Any, *, durable: bool) -> None:
    """Postgres would refuse it too, or cut it."""
    connection = Recorder()
    with pytest.raises(ConfigurationError, match="channel"):
        notify(channel, 1, durable=durable, connection=connection)
    assert connection.executed == []
