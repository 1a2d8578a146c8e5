"""Waiting for what has to come true, in place of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

GLANCE = 0.05

Value = TypeVar("Value")


def eventually(condition: Callable[[], Value], timeout: float = 60.0, glance: float = GLANCE) -> Value:
    """Wait until a condition is true, and fail if it has not become so in time.

    Args:
        condition: returns something true, or does not raise an `AssertionError`, once it holds.
        timeout: seconds; generous, since it only costs anything when something is wrong.
        glance: seconds between one look and the next.

    Returns:
        What the condition returned.

    """
    deadline = time.monotonic() + timeout
    while True:
        complaint: object
        try:
            value = condition()
            if value:
                return value
            complaint = f"last seen: {value!r}"
        except AssertionError as error:
            complaint = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {complaint}")
        time.sleep(glance)
