"""What the page shows, as HTML: whole, and in the parts that change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from celery_pgleader.config import Config
from celery_pgleader.dashboard.access import Access, Visit
from celery_pgleader.dashboard.pictures import HEIGHT, LANE, TICKS, WIDTH, strip, timeline
from celery_pgleader.dashboard.sight import ON_TIME, Entry, Mark, Sight, View
from celery_pgleader.dashboard.watcher import State
from celery_pgleader.operators.words import duration, moment, skew, time_of

# With less trust left than this share of the window a leader is not well.
LITTLE_TRUST = 0.3
MOST_NODES = 500
LISTED_TERMS = 30


class Page:
    """Renders what is known of an election."""

    def __init__(self, config: Config, zone: Any, access: Access, version: str) -> None:
        """Prepare.

        Args:
            config: which election.
            zone: the time zone in which times are shown.
            access: whether there is anything to be ordered.
            version: of the package.

        """
        self._config = config
        self._zone = zone
        environment = self._environment = Environment(
            loader=PackageLoader("celery_pgleader.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.globals |= {
            "election": config.election,
            "database": config.database,
            "version": version,
            "allows_orders": access.allowed,
            "zone": str(zone),
            "duration": duration,
            "skew": skew,
            "moment": lambda at: moment(at, zone),
            "clock": lambda at, now: time_of(at, now, zone),
            "width": WIDTH,
            "height": HEIGHT,
            "lane": LANE,
            "plain": plain,
        }
        self._shown: Any = environment.get_template("parts.html").module

    def whole(self, state: State, view: View, visit: Visit | None) -> str:
        """Return the page, as it is opened; what became of a visitor's last order is told once."""
        told = None
        if visit is not None:
            told, visit.told = visit.told, None
        ranges = [(hours, f"{hours} h" if hours < 48 else f"{hours // 24} d") for hours in TICKS]  # noqa: PLR2004 - two days
        return self._environment.get_template("page.html").render(
            parts=self.parts(state, view),
            view=view,
            here=_link(view),
            ranges=[(words, hours == view.hours, _link(view, hours=hours)) for hours, words in ranges],
            visit=visit,
            told=told,
            sight=state.sight,
            away=state.away_since is not None,
        )

    def parts(self, state: State, view: View) -> dict[str, str]:
        """Return what changes, by the ids of the elements in which it stands."""
        return {name: str(part).strip() for name, part in self._parts(state, view)}

    def entry(self, sight: Sight, entry: Entry, marks: Sequence[Mark]) -> str:
        """Return the page of one entry."""
        return self._environment.get_template("entry.html").render(
            entry=entry,
            marks=list(reversed(marks)),
            drawn=strip(marks, overdue=entry.overdue(sight.now) > ON_TIME),
            standing=entry.standing(sight.now),
            now=sight.now,
        )

    def sign_in(self, *, refused: bool) -> str:
        """Return the page on which the token is given."""
        return self._environment.get_template("sign_in.html").render(refused=refused)

    def trouble(self, title: str, words: str) -> str:
        """Return a page that tells of something that went wrong."""
        return self._environment.get_template("trouble.html").render(title=title, words=words)

    def _parts(self, state: State, view: View) -> Iterator[tuple[str, object]]:
        shown, sight = self._shown, state.sight
        away = (state.away_since, state.away) if state.away_since is not None else None
        yield "banners", shown.banners(sight.overview if sight is not None else None, away)
        if sight is None:
            yield "headline", shown.unknown()
            return
        trust = sight.overview.trust_left
        shaky = trust is not None and trust < LITTLE_TRUST * self._config.trust_window
        yield "headline", shown.headline(sight, shaky, max(0.0, trust or 0.0))
        yield "tiles", shown.tiles(sight, sum(entry.is_in_trouble(sight.now) for entry in sight.entries))
        drawn = timeline(sight.terms, sight.now, view.hours, self._zone)
        yield "timeline", shown.timeline(drawn, view.hours)
        yield "terms", shown.terms(sight.terms[:LISTED_TERMS], sight.now)
        yield from self._entries(sight, view)
        yield "letters", shown.letters(sight)
        nodes = sight.overview.nodes[:MOST_NODES]
        yield "nodes", shown.rows("node", len(nodes))
        for number, node in enumerate(nodes):
            yield f"node-{number}", shown.node(node, sight.overview.role_of(node), sight.now)
        yield "lateness-table", shown.lateness(self._minutes(state))

    def _entries(self, sight: Sight, view: View) -> Iterator[tuple[str, object]]:
        shown, now = self._shown, sight.now
        found = view.of(sight.entries, now)
        entries = view.on_page(sight.entries, now)
        first = (view.page - 1) * View.PAGE
        pages = max(1, -(-len(found) // View.PAGE))
        yield (
            "pager",
            shown.pager(
                first + 1 if entries else 0,
                first + len(entries) if entries else 0,
                len(found),
                _link(view, page=view.page - 1) if view.page > 1 else "",
                _link(view, page=view.page + 1) if view.page < pages else "",
            ),
        )
        yield "no-entries", shown.no_entries(len(sight.entries), len(found))
        yield "entries", shown.rows("entry", len(entries))
        for number, entry in enumerate(entries):
            marks = sight.strips.get(entry.name, ())
            drawn = strip(marks, overdue=entry.overdue(now) > ON_TIME)
            yield f"entry-{number}", shown.entry(entry, drawn, entry.standing(now), now)

    def _minutes(self, state: State) -> list[tuple[str, int, str, str]]:
        return [
            (
                moment(datetime.fromtimestamp(at, timezone.utc), self._zone)[11:16],
                count,
                duration(mean),
                duration(worst),
            )
            for at, count, mean, worst in reversed(state.series.lateness)
        ]


def plain(schedule: str) -> str:
    """Return a schedule, as it is in the ledger, without what only a programmer reads."""
    crontab = re.fullmatch(r"<crontab: (.+) \(m/h/dM/MY/d\)>(.*)", schedule)
    return f"{crontab[1]}{crontab[2]}" if crontab else schedule


def view_of(query: Any) -> View:
    """Return which part of the election the query of an address asks for; what cannot be read is left out."""
    hours, page = str(query.get("hours", "")), str(query.get("page", ""))
    return View(
        query=str(query.get("q", ""))[:100],
        trouble=query.get("show") == "trouble",
        page=max(1, int(page)) if page.isascii() and page.isdecimal() and len(page) < 6 else 1,  # noqa: PLR2004 - so many there are not
        hours=int(hours) if hours in {str(known) for known in TICKS} else View.hours,
    )


def _link(view: View, **other: int) -> str:
    """Return the address of a view, with something else of it."""
    page, hours = other.get("page", view.page), other.get("hours", view.hours)
    given = {
        "q": view.query,
        "show": "trouble" if view.trouble else "",
        "page": page if page > 1 else "",
        "hours": hours if hours != View.hours else "",
    }
    return "?" + urlencode({name: value for name, value in given.items() if value})
