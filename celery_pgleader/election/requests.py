"""What other threads, and signal handlers, ask of the elector."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Requests(Generic[T]):
    """A queue whose reader can wait for a socket at the same time.

    `put` takes no lock, so that it may be called in a signal handler, whatever it has interrupted.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._items: deque[T] = deque()
        self._wake_end, self._put_end = socket.socketpair()
        self._wake_end.settimeout(0)
        self._put_end.settimeout(0)

    def put(self, item: T) -> None:
        """Leave a request and wake who waits for one."""
        self._items.append(item)
        # A full pipe wakes as well as one more byte would; a closed one means that nobody reads any more.
        with contextlib.suppress(OSError):
            self._put_end.send(b"!")

    def take(self) -> T | None:
        """Return the oldest request, or none."""
        return self._items.popleft() if self._items else None

    def pending(self) -> bool:
        """Tell whether there is one."""
        return bool(self._items)

    def wait(self, seconds: float, other: int | None = None) -> None:
        """Wait for a request, or for the file descriptor `other` to become readable; `seconds` at most."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_end, selectors.EVENT_READ)
            if other is not None:
                selector.register(other, selectors.EVENT_READ)
            if not self._items:
                selector.select(seconds)
        with contextlib.suppress(BlockingIOError):
            self._wake_end.recv(4096)

    def close(self) -> None:
        """Wake nobody any more."""
        self._wake_end.close()
        self._put_end.close()
