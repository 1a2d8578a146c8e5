"""When the dashboard asks the database, and what it keeps."""

from __future__ import annotations

from celery_pgleader.dashboard.sight import View
from celery_pgleader.dashboard.watcher import LOOK_EVERY, Series
from tests.support.sights import Desk


def test_watcher_asks_once_for_all_viewers() -> None:
    """Once a second, and at once if the lead has changed."""
    desk = Desk()
    for _ in range(5):
        desk.watcher.enter(View())
    desk.go_on(0)
    assert desk.source.asked == ["pulse", "<lambda>", "lateness_by_minute"]
    desk.go_on(0.2)
    assert desk.rings == 1
    desk.source.pulse = 1
    desk.go_on(0.2)
    assert desk.rings == 2
    desk.go_on(LOOK_EVERY)
    assert desk.rings == 3
    assert desk.source.asked.count("lateness_by_minute") == 1


def test_watcher_without_viewers_counts_the_backlog_only() -> None:
    """So that the chart has a past."""
    desk = Desk()
    for _ in range(3):
        desk.go_on(10)
    assert desk.source.asked == ["waiting"] * 3
    state = desk.watcher.glance(View())
    # What is fresh is not asked for again.
    assert desk.watcher.glance(View()) is state
    desk.now += 2
    assert desk.watcher.glance(View()) is not state
    desk.watcher.enter(View())
    desk.go_on(0)
    assert len(desk.watcher.state.series.backlog) == 4


def test_watcher_keeps_the_last_sight_while_the_database_is_away() -> None:
    """With since when, and why."""
    desk = Desk()
    desk.watcher.enter(View())
    desk.go_on(0)
    desk.source.away = True
    desk.go_on(0.2)
    first = desk.watcher.state
    assert first.away == "connection refused"
    assert first.sight is desk.source.sight
    desk.go_on(2)
    assert desk.watcher.state.away_since == first.away_since
    desk.source.away = False
    desk.go_on(2)
    assert desk.watcher.state.away_since is None


def test_series_covers_one_hour() -> None:
    desk = Desk()
    for _ in range(1000):
        desk.go_on(10)
    desk.watcher.enter(View())
    desk.go_on(0)
    assert len(desk.watcher.state.series.backlog) == 360
    assert Series() == Series((), ())
