"""What the dashboard makes of slots and entries."""

from __future__ import annotations

import pytest

from celery_pgleader.dashboard.sight import Entry
from tests.support.sights import NOW, SECOND, entry, mark


def test_slot_published_late_has_its_own_kind() -> None:
    """One that was run by hand is never late."""
    assert mark(0).kind == "published"
    assert mark(0, late=1.5).kind == "late"
    assert mark(0, late=1.5, reason="run-now").kind == "published"
    assert mark(0, "claimed", settled_at=None).kind == "claimed"
    assert mark(0, "expired", late=100).kind == "expired"


@pytest.mark.parametrize(
    ("one", "standing"),
    [
        (entry("a"), ("none", "no slot yet")),
        (entry("a", mark(3)), ("published", "on time")),
        (entry("a", mark(3, late=2)), ("late", "late")),
        (entry("a", mark(3), next_slot=NOW - 2 * SECOND), ("due", "overdue")),
        (entry("a", mark(3), paused_at=NOW), ("skipped", "paused")),
        (entry("a", mark(0.1, "claimed", settled_at=None)), ("published", "on time")),
        (entry("a", mark(3, "claimed", settled_at=None)), ("due", "not published")),
        (entry("a", mark(3, "skipped", reason="coalesced")), ("skipped", "skipped: coalesced")),
    ],
)
def test_entry_shows_how_its_latest_slot_went(one: Entry, standing: tuple[str, str]) -> None:
    """In a word or two, and whether somebody should look at it."""
    assert one.standing(NOW) == standing
    assert one.is_in_trouble(NOW) == (standing[0] not in {"published", "none"})
