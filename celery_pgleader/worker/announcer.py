"""Tells of changes of the lead by worker events: `worker-leader-gained` and `worker-leader-lost`."""

from __future__ import annotations

from collections import deque
from typing import Any

from celery.utils.log import get_logger

from celery_pgleader.election import Change

logger = get_logger(__name__)


class Announcer:
    """Sends an event for each change while there is a connection to the broker; in the main loop, which owns that."""

    def __init__(self) -> None:
        """Begin without a connection."""
        self._consumer: Any = None
        self._changes: deque[Change] = deque()

    def attach(self, consumer: Any) -> None:
        """Take over a consumer that is connecting."""
        self._consumer = consumer

    def detach(self) -> None:
        """Let go of a consumer that is about to reconnect or stop."""
        self._consumer = None

    def on_change(self, change: Change) -> None:
        """Have a change told of."""
        consumer = self._consumer
        if consumer is not None:
            # Calls may come in any order; the changes are told in theirs.
            self._changes.append(change)
            consumer.call_soon(self._tell)

    def _tell(self) -> None:
        while self._changes:
            change = self._changes.popleft()
            dispatcher = getattr(self._consumer, "event_dispatcher", None)
            if dispatcher is None:
                # A broker without events.
                continue
            try:
                dispatcher.send(
                    "worker-leader-gained" if change.gained else "worker-leader-lost",
                    election=change.term.election,
                    term=change.term.number,
                    reason=change.reason,
                )
            except Exception:
                logger.debug("pgleader: could not tell of a change by an event", exc_info=True)
