"""What the page shows of an election, as it is found in the database in one go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from celery_pgleader.config import Config
from celery_pgleader.dashboard import sql as statements
from celery_pgleader.election.observer import seats
from celery_pgleader.operators import sql as operators_statements
from celery_pgleader.operators.history import PastTerm, history
from celery_pgleader.operators.overview import Overview, look
from celery_pgleader.postgres import Session

# So many slots a strip has, and so many terms are drawn at most.
STRIP = 36
MOST_TERMS = 120
# As in `explain`: slots that were published later than that were late.
ON_TIME = 1.0


@dataclass(frozen=True)
class Mark:
    """A slot, or a stretch of slots in a row that came to the same end.

    Attributes:
        slot: the first, or only, one.
        through: the last.
        count: how many.
        state: claimed, published, skipped or expired.
        reason: why, unless it is published or claimed.
        term: of the leader who wrote it down.
        settled_at: when that was decided; none while it is claimed.

    """

    slot: datetime
    through: datetime
    count: int
    state: str
    reason: str | None
    term: int
    settled_at: datetime | None

    @property
    def late(self) -> float:
        """Seconds after its time at which it was published; zero if somebody asked for it, or it was not."""
        if self.state != "published" or self.settled_at is None or self.reason == "run-now":
            return 0.0
        return max(0.0, (self.settled_at - self.slot).total_seconds())

    @property
    def kind(self) -> str:
        """What is seen of it: its state, or that it was late."""
        return "late" if self.late > ON_TIME else self.state


@dataclass(frozen=True)
class Entry:
    """An entry of the schedule.

    Attributes:
        name: its name.
        task: name of its task.
        schedule: in words.
        next_slot: the first slot that is not accounted for; none if that is not known.
        paused_at: since when its slots are skipped; none if they are not.
        latest: its latest slot; none if there was none.

    """

    name: str
    task: str
    schedule: str
    next_slot: datetime | None
    paused_at: datetime | None
    latest: tuple[datetime, str, str | None, datetime | None] | None

    def overdue(self, now: datetime) -> float:
        """Return for how many seconds its next slot has been due."""
        return max(0.0, (now - self.next_slot).total_seconds()) if self.next_slot is not None else 0.0

    def standing(self, now: datetime) -> tuple[str, str]:
        """Return a kind, as of marks, and words for how it is doing."""
        if self.paused_at is not None:
            return "skipped", "paused"
        if self.overdue(now) > ON_TIME:
            return "due", "overdue"
        if self.latest is None:
            return "none", "no slot yet"
        slot, state, reason, settled_at = self.latest
        if state == "claimed":
            waits = (now - slot).total_seconds() > ON_TIME
            return ("due", "not published") if waits else ("published", "on time")
        if state == "published":
            late = Mark(slot, slot, 1, state, reason, 0, settled_at).kind == "late"
            return ("late", "late") if late else ("published", "on time")
        return state, f"{state}: {reason}" if reason else state

    def is_in_trouble(self, now: datetime) -> bool:
        """Tell whether somebody should look at it."""
        return self.standing(now)[0] not in {"published", "none"}


@dataclass(frozen=True)
class Sight:
    """An election, and what goes with it.

    Attributes:
        now: when it was looked at, by the database's clock.
        overview: who leads, and the like.
        terms: the latest, latest first.
        entries: of the schedule, by name.
        strips: the latest slots of those entries that somebody looks at.
        backlog: how many notifications wait, and seconds for which the oldest has, by channel.
        dead_letters: how many, by channel.

    """

    now: datetime
    overview: Overview
    terms: Sequence[PastTerm] = ()
    entries: Sequence[Entry] = ()
    strips: Mapping[str, Sequence[Mark]] = field(default_factory=dict)
    backlog: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    dead_letters: Mapping[str, int] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """How many notifications wait."""
        return sum(count for count, _ in self.backlog.values())

    @property
    def oldest(self) -> float:
        """Seconds for which the oldest of them has."""
        return max((age for _, age in self.backlog.values()), default=0.0)


@dataclass(frozen=True)
class View:
    """Which part of it somebody looks at.

    Attributes:
        query: entries whose name, or task, contains it.
        trouble: only those that somebody should look at.
        page: which of the pages of entries, from 1.
        hours: how far back the terms go.

    """

    query: str = ""
    trouble: bool = False
    page: int = 1
    hours: int = 6

    PAGE = 50

    def of(self, entries: Iterable[Entry], now: datetime) -> list[Entry]:
        """Return the entries that are meant, on all pages."""
        wanted = self.query.casefold()
        return [
            entry
            for entry in entries
            if (wanted in entry.name.casefold() or wanted in entry.task.casefold())
            and (not self.trouble or entry.is_in_trouble(now))
        ]

    def on_page(self, entries: Iterable[Entry], now: datetime) -> list[Entry]:
        """Return the entries on the page."""
        return self.of(entries, now)[(self.page - 1) * self.PAGE : self.page * self.PAGE]


def see(config: Config, session: Session, views: Collection[View]) -> Sight:
    """Look at an election: at less where there is no schema, or the role may not see it.

    Args:
        config: which election.
        session: with its database.
        views: which entries' slots are wanted.

    Raises:
        psycopg.Error: the database could not be asked.

    """
    now = session.execute(operators_statements.NOW).fetchall()[0][0]
    overview = look(config, session)
    if overview.schema is None:
        return Sight(now, overview)
    parameters = {"election": config.election}
    rows = session.execute(operators_statements.ENTRIES, parameters).fetchall()
    entries = [_entry(*row) for row in rows if row[5] is None]
    names = {entry.name for view in views for entry in view.on_page(entries, now)}
    return Sight(
        now,
        overview,
        history(session, config.election, MOST_TERMS, led=overview.leader is not None),
        entries,
        latest(config, session, names, STRIP),
        {channel: (count, age) for channel, count, age in session.execute(statements.BACKLOG).fetchall()},
        dict(session.execute(statements.DEAD_LETTERS).fetchall()),
    )


def _entry(
    name: str,
    task: str,
    schedule: str,
    next_slot: datetime | None,
    paused_at: datetime | None,
    _retired_at: object,
    slot: datetime | None,
    state: str,
    reason: str | None,
    settled_at: datetime | None,
    *_: object,
) -> Entry:
    found = (slot, state, reason, settled_at) if slot is not None else None
    return Entry(name, task, schedule, next_slot, paused_at, found)


def latest(config: Config, session: Session, entries: Iterable[str], limit: int) -> dict[str, list[Mark]]:
    """Return the latest slots of entries, oldest first.

    Raises:
        psycopg.Error: the database could not be asked.

    """
    found: dict[str, list[Mark]] = {entry: [] for entry in entries}
    parameters = {"election": config.election, "entries": sorted(found), "limit": limit}
    for entry, *mark in session.execute(statements.LATEST, parameters).fetchall():
        found[entry].append(Mark(*mark))
    return found


def lateness_by_minute(config: Config, session: Session) -> list[tuple[int, int, float, float]]:
    """Return the lateness of the last hour: for each minute how many slots, the average and the worst, in seconds.

    Raises:
        psycopg.Error: the database could not be asked.

    """
    return session.execute(statements.LATENESS_BY_MINUTE, {"election": config.election}).fetchall()


def waiting(_config: Config, session: Session) -> tuple[datetime, int, float]:
    """Return the present, how many notifications wait, and seconds for which the oldest has.

    Raises:
        psycopg.Error: the database could not be asked.

    """
    now = session.execute(operators_statements.NOW).fetchall()[0][0]
    backlog = session.execute(statements.BACKLOG).fetchall()
    return now, sum(count for _, count, _ in backlog), max((age for _, _, age in backlog), default=0.0)


def pulse(config: Config, session: Session) -> object:
    """Return what changes when the lead does, for next to nothing.

    Raises:
        psycopg.Error: the database could not be asked.

    """
    found = seats(config, session)
    return sorted((seat.role, seat.backend_pid) for seat in found)
