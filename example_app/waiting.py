"""Waiting for what has to come true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float, glance: float = 0.05) -> T | None:
    """Return the first true value that a condition returns, or none if there was none within `timeout` seconds.

    Args:
        condition: asked again and again.
        timeout: seconds.
        glance: seconds between two askings.

    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            return None
        time.sleep(glance)  # noqa: TID251 - the one place where this is done
    return value
