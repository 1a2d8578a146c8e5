"""What a notification carries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from celery_pgleader.errors import NotificationError

# NOTIFY takes payloads shorter than 8000 bytes (NOTIFY_PAYLOAD_MAX_LENGTH in PostgreSQL's async.c).
MAX_PAYLOAD_BYTES = 7999


@dataclass(frozen=True)
class Notification:
    """A notification as Postgres delivered it.

    Attributes:
        channel: where it was sent.
        payload: its text.
        backend_pid: the session that sent it.

    """

    channel: str
    payload: str
    backend_pid: int


def encode(value: Any) -> str:
    """Return a value as a JSON payload.

    Raises:
        NotificationError: it is no JSON value, or too long for a notification.

    """
    try:
        # Strict JSON: every listener, in whatever language, must be able to read it.
        payload = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(payload.encode())
    except UnicodeEncodeError:
        raise NotificationError("the payload holds a lone surrogate, which is not valid Unicode") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise NotificationError(f"the payload cannot be sent as JSON: {error}") from None
    if size > MAX_PAYLOAD_BYTES:
        raise NotificationError(f"the payload has {size} bytes, Postgres takes at most {MAX_PAYLOAD_BYTES}")
    return payload


def decode(payload: str) -> Any:
    """Return the value of a JSON payload.

    Raises:
        NotificationError: it is not JSON.

    """
    try:
        return json.loads(payload, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NotificationError(f"the payload is not JSON: {error}") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON value")
