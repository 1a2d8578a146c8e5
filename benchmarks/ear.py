"""Hears what the programs tell; see `programs/telling.py`."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

LARGEST = 65_536
# For bursts: what does not fit is lost.
BUFFER = 8 * 1024 * 1024


class Ear:
    """All facts that were told, in the order in which they came."""

    def __init__(self) -> None:
        """Begin to listen."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._socket.bind(("127.0.0.1", 0))
        self._facts: list[dict[str, Any]] = []
        self._heard = threading.Condition()
        self._thread = threading.Thread(target=self._listen, name="ear", daemon=True)
        self._thread.start()

    def __enter__(self) -> Ear:
        """Listen."""
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Listen no more."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.sendto(b"{}", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    @property
    def port(self) -> int:
        """Where to tell."""
        port: int = self._socket.getsockname()[1]
        return port

    def facts(self, event: str, since: float = 0.0) -> list[dict[str, Any]]:
        """Return what was told of one kind, and happened after `since`."""
        with self._heard:
            return [fact for fact in self._facts if fact["event"] == event and fact["at"] > since]

    def await_fact(
        self,
        event: str,
        since: float,
        timeout: float,
        fits: Callable[[dict[str, Any]], bool] = lambda _: True,
        *,
        times: int = 1,
    ) -> dict[str, Any] | None:
        """Return the first fact of a kind after `since` that fits, or the n-th; none if it has not come in time."""
        until = time.monotonic() + timeout
        with self._heard:
            while True:
                found = [f for f in self._facts if f["event"] == event and f["at"] > since and fits(f)]
                if len(found) >= times:
                    return found[times - 1]
                if not self._heard.wait(until - time.monotonic()):
                    return None

    def note(self, fact: dict[str, Any]) -> None:
        """Take a fact as told."""
        with self._heard:
            self._facts.append(fact)
            self._heard.notify_all()

    def forget(self) -> None:
        """Drop all that was told so far."""
        with self._heard:
            self._facts.clear()

    def _listen(self) -> None:
        while fact := json.loads(self._socket.recv(LARGEST)):
            self.note(fact)
