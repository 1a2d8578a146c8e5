"""What viewers of the dashboard are sent."""

from __future__ import annotations

import asyncio
import json

from celery_pgleader.dashboard.feed import Feed
from celery_pgleader.dashboard.watcher import State


def test_viewer_is_sent_everything_once_and_then_changes() -> None:
    """A comment when there is no change; and the end."""

    async def follow() -> list[str]:
        feed, states = Feed(), [State(1)]
        feed.open()
        told = []
        stream = feed.stream(lambda: states[-1], lambda state: {"parts": {"a": 1, "b": state.version}}, 0.001)
        async for event in stream:
            told.append(event)
            if len(told) == 2:
                states.append(State(2))
                feed.ring()
            if len(told) >= 3 and event != ":\n\n":
                feed.close()
        return told

    told = [event for event in asyncio.run(follow()) if event != ":\n\n"]
    assert [json.loads(event.removeprefix("data: ")) for event in told] == [
        {"parts": {"a": 1, "b": 1}},
        {"parts": {"b": 2}},
    ]
