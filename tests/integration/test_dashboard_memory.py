"""An hour of a dashboard, in a few seconds."""

from __future__ import annotations

import asyncio
import gc
import sys
from dataclasses import replace

import pytest

from celery_pgleader.dashboard.feed import Feed
from celery_pgleader.dashboard.sight import View
from celery_pgleader.dashboard.watcher import LOOK_EVERY
from tests.support.sights import NOW, SECOND, Desk, make_page, seen

HOUR = 3600


@pytest.mark.parametrize("pause", [10 * LOOK_EVERY, pytest.param(LOOK_EVERY, marks=pytest.mark.long)])
def test_updates_take_no_more_memory_after_an_hour(pause: float) -> None:
    """Two hours for somebody who looks: the second, in which the charts have all that they will, adds nothing."""
    updates = round(HOUR / pause)
    desk, page = Desk(), make_page()
    desk.watcher.enter(View())

    async def follow() -> None:
        desk.feed = Feed()
        desk.feed.open()
        stream = desk.feed.stream(lambda: desk.watcher.state, lambda state: {"parts": page.parts(state, View())})
        for _ in range(updates):
            desk.source.sight = replace(seen(2), now=NOW + desk.now * SECOND)
            desk.go_on(pause)
            await stream.__anext__()
        desk.feed.close()
        assert [event async for event in stream] == []

    def used() -> int:
        asyncio.run(follow())
        gc.collect()
        return sys.getallocatedblocks()

    after_one, after_two = used(), used()
    print(f"{after_two - after_one} blocks more after another hour, of {after_one}")
    assert desk.watcher.state.version == 2 * updates
    assert len(desk.watcher.state.series.backlog) == HOUR / 10
    # Less than one for each update.
    assert after_two - after_one < updates / 3
