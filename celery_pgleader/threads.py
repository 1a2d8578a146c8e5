"""What threads hand things over with, and wake each other with: an inbox, bells, and an event that rings one."""

from __future__ import annotations

import contextlib
import logging
import queue
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Doorbell:
    """A bell that can be waited for together with a file descriptor.

    `set` takes no lock, so that it may be called in a signal handler, whatever it has interrupted.
    """

    def __init__(self) -> None:
        """Begin silent."""
        self._wake_end, self._put_end = socket.socketpair()
        self._wake_end.settimeout(0)
        self._put_end.settimeout(0)

    def set(self) -> None:
        """Ring it: who waits, or will, is woken."""
        # A full pipe wakes as well as one more byte would; a closed one means that nobody waits any more.
        with contextlib.suppress(OSError):
            self._put_end.send(b"!")

    def wait(self, seconds: float, other: int | None = None) -> None:
        """Wait until it rings, or the file descriptor `other` becomes readable; `seconds` at most. Silence it."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_end, selectors.EVENT_READ)
            if other is not None:
                selector.register(other, selectors.EVENT_READ)
            selector.select(seconds)
        with contextlib.suppress(BlockingIOError):
            self._wake_end.recv(4096)

    def close(self) -> None:
        """Wake nobody any more."""
        self._wake_end.close()
        self._put_end.close()


class Ending(threading.Event):
    """An event that also rings a bell, for those who wait for other things as well."""

    def __init__(self) -> None:
        """Begin unset."""
        super().__init__()
        self._bell: threading.Event | Doorbell | None = None

    def ring(self, bell: threading.Event | Doorbell) -> None:
        """Have `bell` set together with this, or now."""
        self._bell = bell
        if self.is_set():
            bell.set()

    def set(self) -> None:
        """Set this and its bell."""
        super().set()
        bell = self._bell
        if bell is not None:
            bell.set()


class Inbox(Generic[T]):
    """Hands items, one at a time and in order, to a function in a thread of its own.

    Putting an item never blocks, so a slow function holds up nobody but its own inbox. An error that the
    function raises is logged, and the next item is handled.
    """

    def __init__(self, name: str, handle: Callable[[T], object], log: logging.Logger = logger) -> None:
        """Prepare the inbox; nothing is handled before `start`."""
        self._name = name
        self._handle = handle
        self._logger = log
        # Wrapped, so that no item can be taken for the end.
        self._items: queue.SimpleQueue[tuple[T] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to handle what was put and what will be."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def put(self, item: T) -> None:
        """Leave an item to be handled."""
        self._items.put((item,))

    def stop(self, timeout: float = 5.0) -> None:
        """Handle what was put so far, then end; wait for that at most `timeout` seconds."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._items.put(None)
            if thread is not threading.current_thread():
                thread.join(timeout)

    def _run(self) -> None:
        while (wrapped := self._items.get()) is not None:
            try:
                self._handle(*wrapped)
            except Exception:
                self._logger.exception("pgleader: %s failed", self._name)
