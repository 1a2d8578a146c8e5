"""Payloads of raw notifications."""

from __future__ import annotations

from typing import Any

import pytest

from celery_pgleader import NotificationError
from celery_pgleader.notifications.payload import MAX_PAYLOAD_BYTES, decode, encode


@pytest.mark.parametrize("value", [None, 0, 'it\'s "quoted" \\ ü ✓ \0', [1, [2]], {"a": {"b": None}}, True, 1.5])
def test_json_value_is_decoded_as_it_was_encoded(value: object) -> None:
    assert decode(encode(value)) == value


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), "\ud800", b"bytes"])
def test_value_that_is_no_json_is_refused_with_a_reason(value: object) -> None:
    with pytest.raises(NotificationError, match="the payload"):
        encode(value)


def test_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(NotificationError):
        encode(endless)


def test_payload_limit_is_that_of_postgres() -> None:
    """Payloads shorter than 8000 bytes, quotes included."""
    assert len(encode("x" * (MAX_PAYLOAD_BYTES - 2))) == MAX_PAYLOAD_BYTES
    with pytest.raises(NotificationError, match="the payload has 8000 bytes, Postgres takes at most 7999"):
        encode("x" * (MAX_PAYLOAD_BYTES - 1))


@pytest.mark.parametrize("payload", ["", "{", "it's", "NaN", "[-Infinity]", "[" * 100_000])
def test_text_that_is_no_json_is_refused_with_a_reason(payload: str) -> None:
    with pytest.raises(NotificationError, match="the payload is not JSON"):
        decode(payload)
