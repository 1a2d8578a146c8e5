"""An hour of a dashboard, in a few seconds."""

from __future__ import annotations

import asyncio
import gc
import sys
from dataclasses import replace

from celery_pgleader.dashboard.feed import Feed
from celery_pgleader.dashboard.sight import View
from celery_pgleader.dashboard.watcher import LOOK_EVERY
from tests.support.sights import NOW, SECOND, Desk, make_page, seen

HOUR = 3600


def test_an_hour_of_updates_takes_no_more_memory() -> None:
    """Two hours for somebody who looks: the second, in which the charts have all that they will, adds nothing."""
    desk, page = Desk(), make_page()
    desk.watcher.enter(View())

    async def follow(updates: int) -> None:
        desk.feed = Feed()
        desk.feed.open()
        stream = desk.feed.stream(lambda: desk.watcher.state, lambda state: {"parts": page.parts(state, View())})
        for _ in range(updates):
            desk.source.sight = replace(seen(2), now=NOW + desk.now * SECOND)
            desk.go_on(LOOK_EVERY)
            await stream.__anext__()
        desk.feed.close()
        assert [event async for event in stream] == []

    def used() -> int:
        asyncio.run(follow(HOUR))
        gc.collect()
        return sys.getallocatedblocks()

    after_one, after_two = used(), used()
    print(f"{after_two - after_one} blocks more after another hour, of {after_one}")
    assert desk.watcher.state.version == 2 * HOUR
    assert len(desk.watcher.state.series.backlog) == HOUR / 10
    assert after_two - after_one < 1_000
