"""What the dashboard draws."""

from __future__ import annotations

from zoneinfo import ZoneInfo

from celery_pgleader.dashboard.pictures import HEIGHT, MOST_LANES, strip, timeline
from celery_pgleader.dashboard.sight import STRIP
from tests.support.sights import NOW, UTC, mark, past


def test_strip_ends_with_the_slot_that_is_overdue() -> None:
    """It is told in words, too."""
    drawn = strip([mark(2, "skipped", count=30), mark(1), mark(0, late=2)], overdue=True)
    assert [kind for kind, _ in drawn.paths] == ["skipped", "published", "late", "due"]
    assert drawn.words == "30 skipped, 1 published, 1 late, one due and not accounted for"
    assert dict(drawn.paths)["due"].startswith(f"M{STRIP * 7} 0h5v{HEIGHT}")
    assert dict(drawn.paths)["late"].startswith(f"M{(STRIP - 1) * 7} ")
    many = strip([mark(n) for n in range(100)], overdue=False)
    assert [path.count("M") for _, path in many.paths] == [STRIP]
    assert strip([], overdue=False).words == "no slot yet"


def test_timeline_has_a_lane_for_each_node() -> None:
    """The leader's first; a term too short to be seen is drawn all the same."""
    terms = [
        past(3, "a", 10, None, None, None),
        past(2, "b", 10, 10, "lost", 4.0),
        past(1, "a", 600, 10, "handed over to b", 0.003),
        past(0, "c", 900, 600, "stopped", 1.0),
    ]
    drawn = timeline(terms, NOW, 1, ZoneInfo("Europe/Berlin"))
    assert [node for node, _ in drawn.lanes] == ["a", "b"]
    (_, bars), (_, short) = drawn.lanes
    assert [round(bar.x + bar.width) for bar in bars] == [100, 83]
    assert bars[1].x == 0
    assert "term 1: a from 2026-11-24 03:00:03" in bars[1].words
    assert 0 < short[0].width < 1
    assert [change.kind for change in drawn.changes] == ["lost", "handover"]
    assert "ended: lost; nobody led for at most 4.0 s" in drawn.changes[0].words
    assert [words for _, words in drawn.ticks] == ["12:10", "12:20", "12:30", "12:40", "12:50"]
    assert timeline([], NOW, 24, UTC).lanes == []
    crowd = timeline([past(n, str(n), 1, None, None, None) for n in range(20)], NOW, 1, UTC)
    assert (len(crowd.lanes), crowd.hidden) == (MOST_LANES, 20 - MOST_LANES)
