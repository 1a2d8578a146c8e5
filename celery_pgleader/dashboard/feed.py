"""Tells those who look at the page of what has changed, by server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from celery_pgleader.dashboard.watcher import State

# A comment now and then shows a viewer who is gone, and keeps proxies from cutting a silent connection.
HEARTBEAT = 15.0
MOST_VIEWERS = 100


class Feed:
    """A bell for each viewer. What was missed while one was slow is not kept: the latest is all that is shown."""

    def __init__(self) -> None:
        """Begin without viewers."""
        self._bells: set[asyncio.Event] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def is_full(self) -> bool:
        """Whether no more viewers are let in."""
        return len(self._bells) >= MOST_VIEWERS

    def open(self) -> None:
        """Belong to the loop that is running."""
        self._loop = asyncio.get_running_loop()

    def ring(self) -> None:
        """Tell that there is something new. Called in any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._ring)

    def close(self) -> None:
        """Have all streams end. Safe in a signal handler."""
        self._closed = True
        self.ring()

    def _ring(self) -> None:
        for bell in self._bells:
            bell.set()

    async def stream(
        self, state: Callable[[], State], render: Callable[[State], Mapping[str, Any]], heartbeat: float = HEARTBEAT
    ) -> AsyncIterator[str]:
        """Give an event for each change, with what is different for this viewer.

        Args:
            state: what is known now.
            render: what the viewer sees of it; of its `parts`, only those that have changed are sent.
            heartbeat: seconds of silence after which a comment is sent.

        """
        bell = asyncio.Event()
        self._bells.add(bell)
        sent: dict[str, Any] = {}
        version = 0
        try:
            while not self._closed:
                # Before, so that what changes while an event is on its way is seen after it.
                bell.clear()
                now = state()
                if now.version != version:
                    version = now.version
                    seen = dict(render(now))
                    parts = seen.pop("parts")
                    changed = {name: part for name, part in parts.items() if sent.get(name) != part}
                    sent = dict(parts)
                    yield f"data: {json.dumps({**seen, 'parts': changed})}\n\n"
                try:
                    await asyncio.wait_for(bell.wait(), heartbeat)
                except (TimeoutError, asyncio.TimeoutError):
                    yield ":\n\n"
        finally:
            self._bells.discard(bell)
