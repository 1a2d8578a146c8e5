"""Where the lines and bars of the page's pictures are. Pure: from what was seen to numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from celery_pgleader.dashboard.sight import STRIP, Mark
from celery_pgleader.operators.history import PastTerm
from celery_pgleader.operators.words import duration, moment

# A strip: cells of one width, each kind with a height of its own, since colours alone tell too little.
CELL, GAP, HEIGHT = 5, 2, 24
HEIGHTS = {"published": 18, "late": 24, "skipped": 7, "expired": 13, "claimed": 12, "due": 24}
WIDTH = (STRIP + 1) * (CELL + GAP) - GAP

MOST_LANES = 12
# Pixels of height: of a lane, and of the axis.
LANE, AXIS = 34, 22
LEAST_BAR = 0.25
# Ticks of the axis, for so many hours.
TICKS = {1: timedelta(minutes=10), 6: timedelta(hours=1), 24: timedelta(hours=4), 168: timedelta(days=1)}


@dataclass(frozen=True)
class Strip:
    """The slots of an entry.

    Attributes:
        paths: for each kind, the outline of its cells.
        words: what is seen.

    """

    paths: Sequence[tuple[str, str]]
    words: str


def strip(marks: Sequence[Mark], *, overdue: bool) -> Strip:
    """Draw the slots of an entry, the latest to the right; at the end one that is due and not accounted for."""
    kinds = [mark.kind for mark in marks[-STRIP:]]
    outlines: dict[str, list[str]] = {}
    left = STRIP - len(kinds)
    for number, kind in enumerate([*kinds, *(["due"] if overdue else [])], start=left):
        x, high = number * (CELL + GAP), HEIGHTS[kind]
        outlines.setdefault(kind, []).append(f"M{x} {HEIGHT - high}h{CELL}v{high}h-{CELL}z")
    return Strip(
        [(kind, "".join(cells)) for kind, cells in outlines.items()], _counted(marks[-STRIP:], overdue=overdue)
    )


def _counted(marks: Sequence[Mark], *, overdue: bool) -> str:
    counts: dict[str, int] = {}
    for mark in marks:
        counts[mark.kind] = counts.get(mark.kind, 0) + mark.count
    words = [f"{count} {kind}" for kind, count in counts.items()]
    if overdue:
        words.append("one due and not accounted for")
    return ", ".join(words) or "no slot yet"


@dataclass(frozen=True)
class Bar:
    """A term in the timeline, or a time in which nobody led; in per cent of its width.

    Attributes:
        x: where it begins.
        width: how wide it is.
        kind: leading, or how the change came about.
        label: what is written on it.
        words: what it is.

    """

    x: float
    width: float
    kind: str
    label: str
    words: str


@dataclass(frozen=True)
class Timeline:
    """The terms of the last hours.

    Attributes:
        lanes: for each node that led, its terms.
        changes: when the lead changed, and why.
        ticks: of the axis, where and what.
        hidden: how many nodes are left out, for want of room.

    """

    lanes: Sequence[tuple[str, Sequence[Bar]]] = ()
    changes: Sequence[Bar] = ()
    ticks: Sequence[tuple[float, str]] = ()
    hidden: int = 0

    @property
    def height(self) -> int:
        """Its height in pixels."""
        return LANE * max(1, len(self.lanes)) + AXIS


def timeline(terms: Sequence[PastTerm], now: datetime, hours: int, zone: tzinfo) -> Timeline:
    """Draw the terms of the last hours, a lane for each node, the present leader's first."""
    # So that it is another picture every ten seconds, and not each time it is looked at.
    now += timedelta(seconds=10 - now.timestamp() % 10)
    since = now - timedelta(hours=hours)
    shown = [term for term in terms if term.ended_at is None or term.ended_at >= since]
    nodes = list(dict.fromkeys(term.node for term in shown))

    def at(instant: datetime) -> float:
        return round(100 * max(0.0, min(1.0, (instant - since) / (now - since))), 3)

    lanes = []
    for node in nodes[:MOST_LANES]:
        bars = []
        for term in shown:
            if term.node == node:
                x, end = at(term.gained_at), at(term.ended_at or now)
                lasted = duration(((term.ended_at or now) - term.gained_at).total_seconds())
                words = f"term {term.term}: {node} from {moment(term.gained_at, zone)}, for {lasted}"
                wide = end - x > 5  # noqa: PLR2004 - per cent; in less there is no room for it
                bars.append(Bar(x, max(LEAST_BAR, end - x), "leads", f"term {term.term}" if wide else "", words))
        lanes.append((node, bars))
    changes = [_change(term, at) for term in shown if term.reason is not None and term.ended_at]
    return Timeline(lanes, changes, _ticks(since, now, hours, zone, at), max(0, len(nodes) - MOST_LANES))


def _change(term: PastTerm, at: Callable[[datetime], float]) -> Bar:
    assert term.ended_at is not None
    gap = term.gap or 0.0
    x, end = at(term.ended_at), at(term.ended_at + timedelta(seconds=gap))
    kind = "lost" if term.reason == "lost" else "handover"
    nobody = f"; nobody led for {'at most ' if term.gap_is_at_most else ''}{duration(gap)}" if term.gap else ""
    return Bar(x, max(LEAST_BAR, end - x), kind, "", f"term {term.term} of {term.node} ended: {term.reason}{nobody}")


def _ticks(
    since: datetime, now: datetime, hours: int, zone: tzinfo, at: Callable[[datetime], float]
) -> list[tuple[float, str]]:
    step = TICKS[hours]
    # From midnight on, by the clock of the app's zone.
    local = since.astimezone(zone)
    tick = local.replace(hour=0, minute=0, second=0, microsecond=0)
    ticks = []
    while tick <= now:
        # Where there is room for its label.
        if tick > since and 2 < at(tick) < 98:  # noqa: PLR2004 - per cent
            ticks.append((at(tick), tick.strftime("%a %d" if step >= timedelta(days=1) else "%H:%M")))
        tick += step
    return ticks
