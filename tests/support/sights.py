"""What a dashboard sees, without a database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg

from celery_pgleader.config import Config
from celery_pgleader.dashboard import sight as sights
from celery_pgleader.dashboard.access import Access
from celery_pgleader.dashboard.feed import Feed
from celery_pgleader.dashboard.page import Page
from celery_pgleader.dashboard.sight import Entry, Mark, Sight, View
from celery_pgleader.dashboard.watcher import Watcher
from celery_pgleader.election.observer import Seat
from celery_pgleader.operators.history import PastTerm
from celery_pgleader.operators.overview import Node, Overview

UTC = timezone.utc
NOW = datetime(2026, 11, 24, 12, 0, 3, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CONFIG = Config(database_url="host=db dbname=shop password=sesame", election="shop")


def make_page(token: str | None = None) -> Page:
    return Page(CONFIG, UTC, Access(token), "0.1.0")


def mark(seconds: float, state: str = "published", late: float = 0.01, **more: Any) -> Mark:
    slot = NOW - seconds * SECOND
    given = {"through": slot, "count": 1, "reason": None, "term": 7, "settled_at": slot + late * SECOND, **more}
    return Mark(slot=slot, state=state, **given)


def entry(name: str, latest: Mark | None = None, **more: Any) -> Entry:
    found = (latest.slot, latest.state, latest.reason, latest.settled_at) if latest is not None else None
    return Entry(name, "shop.task", "every 0:00:30", more.get("next_slot"), more.get("paused_at"), found)


def past(number: int, node: str, begun: float, ended: float | None, reason: str | None, gap: float | None) -> PastTerm:
    """Return a term that began and ended so many minutes ago."""
    end = NOW - timedelta(minutes=ended) if ended is not None else None
    return PastTerm(number, node, NOW - timedelta(minutes=begun), end, reason, gap, gap_is_at_most=reason == "lost")


def seen(count: int, at: datetime = NOW) -> Sight:
    """Return the sight of a leader with so many nodes and entries."""
    nodes = [
        Node(f"celery@{n}", "", n, 1, None, False, None, "5c2bde8b", "", "0.1.0", 0.0, at)  # noqa: FBT003 - as it is made
        for n in range(count)
    ]
    overview = Overview(
        Seat("leader", "celery@0", 0, None), [], 7, "celery@0", at, schema=5, trust_left=4.0, nodes=nodes
    )
    entries = [entry(f"entry {n}", mark(1), next_slot=at + SECOND) for n in range(count)]
    strips = {one.name: [mark(n) for n in range(40)] for one in entries[: View.PAGE]}
    return Sight(at, overview, [PastTerm(7, "celery@0", at, None, None, None, gap_is_at_most=False)], entries, strips)


class FakeSource:
    """Answers without a database."""

    def __init__(self) -> None:
        """Begin."""
        self.asked: list[str] = []
        self.sight = seen(3)
        self.away = False
        self.pulse = 0

    def ask(self, question: Callable[..., Any]) -> Any:
        """Answer, by what is asked."""
        name = getattr(question, "__name__", "")
        self.asked.append(name)
        if self.away:
            raise psycopg.OperationalError("connection refused")
        if question is sights.pulse:
            return self.pulse
        if question is sights.waiting:
            return self.sight.now, 1, 0.5
        return self.sight if name == "<lambda>" else [(60, 2, 0.01, 0.02)]


class Desk:
    """A watcher with a clock that is set by hand."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.now = 0.0
        self.rings = 0
        self.feed = Feed()
        self.source = FakeSource()
        self.watcher = Watcher(CONFIG, self.source, self.ring, lambda: self.now)

    def ring(self) -> None:
        self.rings += 1
        self.feed.ring()

    def go_on(self, seconds: float) -> None:
        self.now += seconds
        self.watcher.turn()
