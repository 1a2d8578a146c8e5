"""Bugs that are planted to see that the tests find them: small patches of the package, or of what a statement does.

`docs/simulation.md` says what each does, and which suite has to find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partialmethod
from typing import Any, TypeAlias
from unittest.mock import patch

from celery.exceptions import Reject

from celery_pgleader.beat import publisher, slot_keeper
from celery_pgleader.beat.slots import UTC
from celery_pgleader.config import Config
from celery_pgleader.election import elector, leadership, lock_session, state, term_runner
from celery_pgleader.election.state import Phase
from celery_pgleader.notifications import relay
from celery_pgleader.store import Outcome
from celery_pgleader.tasks import run_guard, turn
from celery_pgleader.worker import participant
from tests.simulation.postgres import SHARE, Session
from tests.simulation.server import ClientSession
from tests.simulation.twins import OfElection, OfStore, Twin
from tests.simulation.world import Datetime

Broken: TypeAlias = Callable[[Any], Any]


class Bug:
    """A planted bug."""

    def __init__(self, *patches: tuple[Any, Any, Broken], found_by: str = "") -> None:
        """Describe it.

        Args:
            patches: attributes of modules and classes, or items of dictionaries: of what, its name, and what gets the
                real one and returns what is there instead.
            found_by: the tests of which at least one has to fail, as arguments of pytest; none for the simulation.

        """
        self.patches = patches
        self.found_by = found_by


BUGS: dict[str, Bug] = {}


def bug(target: Any, key: Any, *, found_by: str = "") -> Callable[[Broken], Broken]:
    """Make a function what breaks something, as a bug of its name."""

    def register(broken: Broken) -> Broken:
        BUGS[broken.__name__.replace("_", "-")] = Bug((target, key, broken), found_by=found_by)
        return broken

    return register


def share(count: int, seed: int) -> list[str]:
    """Return every `count`-th bug, beginning with that of number `seed` modulo `count`."""
    return [name for number, name in enumerate(BUGS) if number % count == seed % count]


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Have a bug inside of the block."""
    with ExitStack() as stack:
        for target, key, broken in BUGS[name].patches:
            if isinstance(target, dict):
                stack.enter_context(patch.dict(target, {key: broken(target[key])}))
            else:
                stack.enter_context(patch.object(target, key, broken(getattr(target, key))))
        yield


@bug(OfElection, "take_place")
def a_successor_is_not_watched(real: Any) -> Any:
    def take_place(self: Twin, *keys: int) -> Any:
        rows = real(self, *keys)
        self.session.idle_timeout = None
        return rows

    return take_place


@bug(OfStore, "fence")
def no_look_at_the_term(_real: Any) -> Any:
    def fence(self: Twin) -> Any:
        self.tx.fenced = self.p.election, self.p.term
        return self.tx.view("elections").get(self.p.election)
        yield

    return fence


def _elected(election: Any, event: state.PlaceTaken, _moment: state.Moment) -> Any:
    return replace(election, phase=Phase.ELECTED, place=event.place)


def _fence_of_a_snapshot(self: Twin, *, share: bool) -> Any:
    self.tx.fenced = self.p.election, self.p.term
    row = self.tx.view("elections").get(self.p.election)
    yield None
    if share:
        yield from self.tx.lock_row("elections", self.p.election, SHARE)
    return row if row is not None and row["term"] == self.p.term else None


@bug(publisher.Publisher, "_publish")
def marked_before_it_is_published(real: Any) -> Any:
    def publish(self: Any, dispatch: Any) -> None:
        self._settled(Outcome(dispatch.name, dispatch.slot, "published"))
        real(self, dispatch)

    return publish


@bug(term_runner.TermRunner, "_run_once")
def the_old_term_ends_the_new(real: Any) -> Any:
    def run_once(self: Any, term: Any, ended: Any) -> None:
        real(self, term, ended)
        with self._turn:
            self._end()

    return run_once


@bug(relay.Round, "turn")
def a_wake_up_without_a_look(real: Any) -> Any:
    def turn(self: Any) -> bool:
        seen, self.looked = getattr(self, "looked", False), True
        return real(self) if seen and self._mailbox.newest() > self._seen else False

    return turn


@bug(relay.Round, "_dispatch_together")
def deleted_before_it_is_dispatched(real: Any) -> Any:
    def dispatch(self: Any, letters: Any) -> None:
        self._mailbox.dispatched(letters)
        real(self, letters)

    return dispatch


@bug(OfStore, "notify")
def nobody_is_woken(real: Any) -> Any:
    def notify(self: Twin) -> Any:
        with patch.object(self.tx, "try_lock", lambda *_: True):
            return (yield from real(self))

    return notify


@bug(turn.Turn, "_take")
def the_turn_is_not_waited_for(_real: Any) -> Any:
    def take(self: Any, _lock: Any, term: Any, _ended: Any) -> None:
        self._page.give_turn(term.number)
        self._on_turn()

    return take


@bug(participant.Participant, "wind_down")
def the_lock_is_free_before_the_drain(_real: Any) -> Any:
    def wind_down(self: Any) -> None:
        self._turn.give_up()
        self._elector.leave()

    return wind_down


@bug(elector.Candidacy, "_close", found_by="tests/unit/election/test_elector.py")
def the_lock_is_let_go_first(_real: Any) -> Any:
    def close_at_once(self: Any, *, broken: bool) -> None:
        session, self._session = self._session, None
        if session is not None:
            if not broken:
                session.release(self._loss)
            session.close()

    return close_at_once


TERMS, RENEWED = vars(lock_session.TRANSACTION_TERMS), (Phase.RENEWING, state.Renewed)
BUGS |= {
    "trust-from-the-end-of-the-renewal": Bug(
        (state.TRANSITIONS, RENEWED, lambda real: lambda old, event, at: real(old, replace(event, asked_at=at.now), at))
    ),
    "trust-without-end": Bug((Config, "trust_window", lambda _: 1e9)),
    "a-late-renewal-counts": Bug(
        (
            state.TRANSITIONS,
            RENEWED,
            lambda real: lambda old, *new: real(replace(old, trusted_until=float("inf")), *new),
        ),
        found_by="tests/unit/election/test_state.py",
    ),
    "the-farewell-is-not-heard": Bug((ClientSession, "is_quiet", lambda _: lambda *_, **__: True)),
    "a-successor-never-stands-again": Bug(
        (state.TRANSITIONS, (Phase.RELEASING, state.Released), lambda _: lambda *_: state.Election(Phase.STOPPED))
    ),
    "a-term-before-the-lock": Bug(
        (state.TRANSITIONS, (Phase.POLLING, state.PlaceTaken), lambda _: _elected),
        (Session, "holds", lambda _: lambda *_: True),
    ),
    "the-lock-is-taken-again-as-a-check": Bug(
        (TERMS, "renew", lambda _: "select 1 where pg_try_advisory_lock(%(classid)s::int, %(objid)s::int)"),
        found_by="tests/integration/test_election.py -k incident_1",
    ),
    "a-leader-is-known-by-its-name": Bug(
        (
            TERMS,
            "renew",
            lambda _: "select 1 from pg_stat_activity where application_name = 'pgleader leader ' || %(node)s",
        ),
        found_by="tests/integration/test_election.py -k incident_1",
    ),
    "no-for-share": Bug((OfStore, "fence", lambda _: partialmethod(_fence_of_a_snapshot, share=False))),
    "an-old-snapshot": Bug((OfStore, "fence", lambda _: partialmethod(_fence_of_a_snapshot, share=True))),
    "a-sync-after-the-loss": Bug(
        (leadership.Leadership, "holds", lambda _: lambda *_: True),
        found_by="tests/integration/test_schedule_file.py -k lost_the_lead",
    ),
    "a-task-id-with-the-time-in-it": Bug(
        (slot_keeper, "task_id_of", lambda real: lambda a, entry, b: real(a, f"{entry} {Datetime.now(UTC)}", b))
    ),
    "what-was-claimed-is-forgotten": Bug((slot_keeper.SlotKeeper, "publish_claimed", lambda _: lambda *_: None)),
    "a-sleep-beside-what-was-left": Bug((relay.Round, "turn", lambda real: lambda self: real(self) and False)),
    "what-is-given-back-goes-elsewhere": Bug(
        (run_guard, "Reject", lambda _: lambda reason, **_: Reject(reason, requeue=False))
    ),
}
