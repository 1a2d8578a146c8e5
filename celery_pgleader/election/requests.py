"""What other threads, and signal handlers, ask of the elector."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from celery_pgleader.threads import Doorbell

T = TypeVar("T")


class Requests(Generic[T]):
    """A queue whose reader can wait for a socket at the same time.

    `put` takes no lock, so that it may be called in a signal handler, whatever it has interrupted.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._items: deque[T] = deque()
        self._bell = Doorbell()

    def put(self, item: T) -> None:
        """Leave a request and wake who waits for one."""
        self._items.append(item)
        self._bell.set()

    def take(self) -> T | None:
        """Return the oldest request, or none."""
        return self._items.popleft() if self._items else None

    def pending(self) -> bool:
        """Tell whether there is one."""
        return bool(self._items)

    def wait(self, seconds: float, other: int | None = None) -> None:
        """Wait for a request, or for the file descriptor `other` to become readable; `seconds` at most."""
        self._bell.wait(0 if self._items else seconds, other)

    def close(self) -> None:
        """Wake nobody any more."""
        self._bell.close()
