"""What the dashboard draws, tells and remembers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from click.testing import CliRunner

from celery_pgleader.cli import dashboard as command
from celery_pgleader.cli.plugin import pgleader
from celery_pgleader.dashboard.access import LASTS, LEAST_TOKEN, MOST_SESSIONS, Access, is_genuine
from celery_pgleader.dashboard.command import CannotServe, serve
from celery_pgleader.dashboard.feed import Feed
from celery_pgleader.dashboard.page import plain, view_of
from celery_pgleader.dashboard.pictures import HEIGHT, MOST_LANES, strip, timeline
from celery_pgleader.dashboard.sight import STRIP, Entry, View
from celery_pgleader.dashboard.watcher import LOOK_EVERY, Series, State
from celery_pgleader.operators.history import PastTerm
from tests.support.sights import NOW, SECOND, UTC, Desk, entry, make_page, mark, seen


def test_kinds_of_slots() -> None:
    """One that was published late is another; one that somebody has asked for is never late."""
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
def test_how_an_entry_is_doing(one: Entry, standing: tuple[str, str]) -> None:
    """In a word or two, and whether somebody should look at it."""
    assert one.standing(NOW) == standing
    assert one.is_in_trouble(NOW) == (standing[0] not in {"published", "none"})


def test_a_strip() -> None:
    """The latest slot is the last cell before the one that is due; it is told in words, too."""
    drawn = strip([mark(2, "skipped", count=30), mark(1), mark(0, late=2)], overdue=True)
    assert [kind for kind, _ in drawn.paths] == ["skipped", "published", "late", "due"]
    assert drawn.words == "30 skipped, 1 published, 1 late, one due and not accounted for"
    assert dict(drawn.paths)["due"].startswith(f"M{STRIP * 7} 0h5v{HEIGHT}")
    assert dict(drawn.paths)["late"].startswith(f"M{(STRIP - 1) * 7} ")
    many = strip([mark(n) for n in range(100)], overdue=False)
    assert [path.count("M") for _, path in many.paths] == [STRIP]
    assert strip([], overdue=False).words == "no slot yet"


def past(number: int, node: str, begun: float, ended: float | None, reason: str | None, gap: float | None) -> PastTerm:
    """Return a term that began and ended so many minutes ago."""
    end = NOW - timedelta(minutes=ended) if ended is not None else None
    return PastTerm(number, node, NOW - timedelta(minutes=begun), end, reason, gap, gap_is_at_most=reason == "lost")


def test_a_timeline() -> None:
    """A lane for each node, the leader's first; what is too short to be seen is drawn all the same."""
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


def test_views() -> None:
    """What cannot be read of an address is left out, and nothing of it is taken for more than it is."""
    assert view_of({}) == View()
    assert view_of({"q": "x" * 1000, "page": "2", "hours": "24", "show": "trouble"}) == View(
        "x" * 100, trouble=True, page=2, hours=24
    )
    for nonsense in ("-1", "0", "1e3", "٣", "9" * 50):
        assert view_of({"page": nonsense, "hours": nonsense}) == View()


def test_crontabs_are_shown_as_they_are_written() -> None:
    """Others as they are in the ledger."""
    assert plain("<crontab: 0 4 * * * (m/h/dM/MY/d)> (UTC)") == "0 4 * * * (UTC)"
    assert plain("every 0:00:30") == "every 0:00:30"


def test_names_are_no_markup() -> None:
    """Whoever may name an entry, a node or a channel may not write the page."""
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


def test_only_what_has_changed_is_another_part() -> None:
    """Each row by itself."""
    page, sight = make_page(), seen(3)
    before = page.parts(State(1, sight), View())
    entries = [sight.entries[0], replace(sight.entries[1], paused_at=NOW), sight.entries[2]]
    after = page.parts(State(2, replace(sight, entries=entries)), View())
    assert {name for name in before if before[name] != after[name]} == {"entry-1", "tiles"}


def test_access() -> None:
    """For those who have the token, for twelve hours; so many at most."""
    now = [0.0]
    access = Access("t" * LEAST_TOKEN, lambda: now[0])
    assert access.sign_in("t") is None
    assert access.sign_in("") is None
    assert Access(None).sign_in("") is None
    cookie = access.sign_in("t" * LEAST_TOKEN)
    assert cookie is not None
    visit = access.visit(cookie)
    assert visit is not None
    assert visit.form_token not in repr(visit)
    assert is_genuine(visit, visit.form_token)
    assert not is_genuine(visit, "ä")
    assert access.visit(None) is access.visit("x") is None
    now[0] = LASTS
    assert access.visit(cookie) is None
    now[0] = 0.0
    access.sign_out(cookie)
    assert access.visit(cookie) is None
    cookies = [access.sign_in("t" * LEAST_TOKEN) for _ in range(MOST_SESSIONS + 1)]
    assert access.visit(cookies[0]) is None
    assert all(access.visit(cookie) for cookie in cookies[1:])


def test_it_looks_once_for_all() -> None:
    """Once a second, and at once if the lead has changed; however many look."""
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


def test_with_nobody_looking_it_only_counts_what_waits() -> None:
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


def test_a_database_that_is_away() -> None:
    """What was seen stays, with since when and why; and it is over when it is."""
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


def test_viewers_are_told_what_has_changed_for_them() -> None:
    """Everything first, then only what is different; a comment when it is silent; and the end."""

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


@pytest.mark.parametrize(
    ("bind", "more", "words"),
    [
        ("5556", {}, "--bind 5556: must be an address and a port"),
        ("127.0.0.1:x", {}, "must be an address and a port"),
        ("127.0.0.1:70000", {}, "must be an address and a port"),
        ("127.0.0.1:0", {"allow_actions": True}, "--allow-actions needs a token of at least 16 characters"),
        ("127.0.0.1:0", {"allow_actions": True, "token": "short"}, "--allow-actions needs a token"),
    ],
)
def test_what_cannot_be_served(bind: str, more: dict[str, Any], words: str) -> None:
    """In one line that says what to do."""

    class App:
        main, timezone, conf = "shop", UTC, {"pgleader_database_url": "host=db"}

    given: dict[str, Any] = {"allow_actions": False, "token": None, **more}
    with pytest.raises(CannotServe, match=words):
        serve(App(), bind, say=print, warn=print, **given)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install."""
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "starlette" else object())

    context = SimpleNamespace(app=Celery("proj", set_as_current=False))
    result = CliRunner().invoke(pgleader, ["dashboard"], obj=context)
    assert result.exit_code == 1
    assert result.output == "Error: the dashboard needs starlette: run `pip install 'celery-pgleader[dashboard]'`\n"


def test_series_are_bounded() -> None:
    """An hour of them."""
    desk = Desk()
    for _ in range(1000):
        desk.go_on(10)
    desk.watcher.enter(View())
    desk.go_on(0)
    assert len(desk.watcher.state.series.backlog) == 360
    assert Series() == Series((), ())
