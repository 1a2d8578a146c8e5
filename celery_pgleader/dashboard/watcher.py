"""Looks at the election while somebody looks at the page, once for all of them; otherwise at what waits only."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Protocol, TypeVar

import psycopg
from celery.utils.log import get_logger

from celery_pgleader.config import Config
from celery_pgleader.dashboard import sight as sights
from celery_pgleader.dashboard.sight import Sight, View
from celery_pgleader.operators.words import first_line
from celery_pgleader.postgres import Session

logger = get_logger(__name__)

T = TypeVar("T")

# Whether the lead has changed is asked that often, all else less so, and what is drawn over an hour still less.
PULSE_EVERY, LOOK_EVERY, SERIES_EVERY = 0.2, 1.0, 10.0
# What has been looked at within this time need not be looked at again for a page that is opened.
FRESH = 1.0
# Looking takes no more than this share of the time, however much there is to see.
SHARE = 0.1
HOUR = 3600.0
STOP_PATIENCE = 1.0


@dataclass(frozen=True)
class Series:
    """What is drawn over an hour.

    Attributes:
        lateness: for each minute how many slots, and their average and worst lateness in seconds.
        backlog: when it was looked at, how many notifications waited, and seconds for which the oldest had.

    """

    lateness: Sequence[tuple[int, int, float, float]] = ()
    backlog: Sequence[tuple[int, int, float]] = ()


@dataclass(frozen=True)
class State:
    """What is known now.

    Attributes:
        version: rises with each change.
        sight: what was seen last; none if nothing was yet.
        series: what is drawn over an hour.
        away_since: since when the database cannot be asked; none if it can.
        away: why it cannot.

    """

    version: int = 0
    sight: Sight | None = None
    series: Series = field(default_factory=Series)
    away_since: datetime | None = None
    away: str = ""


class SourcePort(Protocol):
    """What a watcher asks; see `Source`."""

    def ask(self, question: Callable[[Config, Session], T], /) -> T:
        """Return the answer to a question, or raise `psycopg.Error`."""


class Watcher:
    """Looks, in a thread of its own, and tells those who look at the page of each change."""

    def __init__(
        self,
        config: Config,
        source: SourcePort,
        changed: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            config: which election.
            source: the session to ask through.
            changed: called, in the watcher's thread, when there is something new in `state`.
            clock: monotonic seconds.

        """
        self._config = config
        self._source = source
        self._changed = changed
        self._clock = clock
        self.state = State()
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._views: Counter[View] = Counter()
        self._bell = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._look_at = self._series_at = self._looked_at = -HOUR
        self._pulse: object = None
        self._backlog: deque[tuple[int, int, float]] = deque(maxlen=round(HOUR / SERIES_EVERY))

    def start(self) -> None:
        """Begin to look."""
        self._thread = threading.Thread(target=self._run, name="pgleader-watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stopping = True
        self._bell.set()
        if self._thread is not None:
            self._thread.join(STOP_PATIENCE)

    def enter(self, view: View) -> None:
        """Have somebody look at a view. Never waits for the database."""
        with self._counting:
            self._views[view] += 1
        self._look_at = -HOUR
        self._bell.set()

    def leave(self, view: View) -> None:
        """Have them look no more."""
        with self._counting:
            self._views[view] -= 1
            self._views += Counter()

    def glance(self, view: View) -> State:
        """Return what is known now, having looked if that is old, or if it lacks some of a view."""
        with self._turn:
            if self._clock() - self._looked_at >= FRESH or self._lacks(view):
                # What is drawn over an hour can wait until the page is there.
                self._look({*self._in_view(), view}, draw=False)
            return self.state

    def turn(self) -> None:
        """Do what is to be done now."""
        with self._turn:
            now = self._clock()
            views = self._in_view()
            if not views:
                self._sample()
            elif now >= self._look_at or self._has_changed():
                self._look(views)

    def _in_view(self) -> set[View]:
        with self._counting:
            return {*self._views}

    def _lacks(self, view: View) -> bool:
        sight = self.state.sight
        return (
            sight is not None
            and self.state.away_since is None
            and any(entry.name not in sight.strips for entry in view.on_page(sight.entries, sight.now))
        )

    def _sample(self) -> None:
        with suppress(psycopg.Error):
            self._note(*self._source.ask(sights.waiting))

    def _run(self) -> None:
        while not self._stopping:
            try:
                self.turn()
            except Exception:
                # A bug; who looks is to see what comes next all the same.
                logger.exception("pgleader: the dashboard could not look")
            self._bell.wait(PULSE_EVERY if self._views else SERIES_EVERY)
            self._bell.clear()

    def _has_changed(self) -> bool:
        try:
            pulse = self._source.ask(sights.pulse)
        except psycopg.Error:
            # The next look tells what is wrong.
            return True
        return pulse != self._pulse

    def _look(self, views: set[View], *, draw: bool = True) -> None:
        began = self._clock()
        state = self.state
        try:
            # Before, so that what changes in between is seen next time.
            self._pulse = self._source.ask(sights.pulse)
            sight = self._source.ask(lambda config, session: sights.see(config, session, views))
            series = self._draw(sight, began) if draw else state.series
        except psycopg.Error as error:
            if state.away_since is None:
                logger.warning("pgleader: cannot ask %s: %s", self._config.database, first_line(error))
            self.state = replace(
                state,
                version=state.version + 1,
                away_since=state.away_since or datetime.now(timezone.utc),
                away=first_line(error),
            )
        else:
            self.state = State(state.version + 1, sight, series)
        self._looked_at = self._clock()
        self._look_at = self._looked_at + max(LOOK_EVERY, (self._looked_at - began) / SHARE)
        self._changed()

    def _draw(self, sight: Sight, now: float) -> Series:
        if now < self._series_at:
            return self.state.series
        self._series_at = now + SERIES_EVERY
        self._note(sight.now, sight.waiting, sight.oldest)
        if sight.overview.schema is None:
            return Series((), tuple(self._backlog))
        return Series(self._source.ask(sights.lateness_by_minute), tuple(self._backlog))

    def _note(self, now: datetime, waiting: int, oldest: float) -> None:
        self._backlog.append((round(now.timestamp()), waiting, oldest))
