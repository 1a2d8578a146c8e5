"""Waiting for what has to come true, in place of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable

GLANCE = 0.01


def eventually(condition: Callable[[], object], timeout: float = 60.0, glance: float = GLANCE) -> None:
    """Wait until a condition is true, and fail if it has not become so in time.

    Args:
        condition: returns something true, or does not raise an `AssertionError`, once it holds.
        timeout: seconds; generous, since it only costs anything when something is wrong.
        glance: seconds between one look and the next.

    """
    deadline = time.monotonic() + timeout
    while True:
        complaint: object
        try:
            value = condition()
            if value:
                return
            complaint = f"last seen: {value!r}"
        except AssertionError as error:
            complaint = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {complaint}")
        time.sleep(glance)
