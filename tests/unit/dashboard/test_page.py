"""The dashboard's page."""

from __future__ import annotations

from dataclasses import replace

from celery_pgleader.dashboard.page import plain, view_of
from celery_pgleader.dashboard.sight import View
from celery_pgleader.dashboard.watcher import State
from tests.support.sights import NOW, make_page, past, seen


def test_view_leaves_out_what_cannot_be_read() -> None:
    """Nothing of an address is taken for more than it is."""
    assert view_of({}) == View()
    assert view_of({"q": "x" * 1000, "page": "2", "hours": "24", "show": "trouble"}) == View(
        "x" * 100, trouble=True, page=2, hours=24
    )
    for nonsense in ("-1", "0", "1e3", "٣", "9" * 50):
        assert view_of({"page": nonsense, "hours": nonsense}) == View()


def test_crontab_is_shown_as_it_is_written() -> None:
    """Other schedules are shown as they are in the ledger."""
    assert plain("<crontab: 0 4 * * * (m/h/dM/MY/d)> (UTC)") == "0 4 * * * (UTC)"
    assert plain("every 0:00:30") == "every 0:00:30"


def test_names_cannot_become_markup() -> None:
    """Those of entries, nodes and channels, reasons, and what is searched for. The password is not shown either."""
    evil = '"><script>alert(1)</script>'
    sight = seen(2)
    sight = replace(
        sight,
        entries=[replace(sight.entries[0], name=evil, schedule=evil)],
        overview=replace(sight.overview, nodes=[replace(sight.overview.nodes[0], node=evil, stands_back=evil)]),
        terms=[past(1, evil, 3, 1, evil, 2.0)],
        backlog={evil: (1, 2.0)},
        dead_letters={evil: 1},
    )
    page = make_page().whole(State(1, sight, away_since=NOW, away=evil), View(query="entry"), None)
    page += make_page().whole(State(1, sight), View(query=evil), None)
    assert "<script>" not in page.replace("<script src", "")
    assert "sesame" not in page


def test_only_changed_rows_are_changed_parts() -> None:
    page, sight = make_page(), seen(3)
    before = page.parts(State(1, sight), View())
    entries = [sight.entries[0], replace(sight.entries[1], paused_at=NOW), sight.entries[2]]
    after = page.parts(State(2, replace(sight, entries=entries)), View())
    assert {name for name in before if before[name] != after[name]} == {"entry-1", "tiles"}
