"""Bugs that are planted to see that the tests find them: small patches of the package, or of what a statement does.

`docs/simulation.md` says what each does, and which suite has to find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partialmethod
from typing import Any, TypeAlias
from unittest.mock import patch

from celery.exceptions import Reject

from celery_pgleader.beat import publisher, scheduler, slot_keeper
from celery_pgleader.beat.slots import UTC
from celery_pgleader.config import Config
from celery_pgleader.election import elector, lock_session, state, term_runner
from celery_pgleader.election.state import Phase
from celery_pgleader.notifications import relay
from celery_pgleader.store import Outcome
from celery_pgleader.tasks import run_guard, turn
from celery_pgleader.worker import participant
from tests.simulation import twins
from tests.simulation.postgres import SHARE, Session
from tests.simulation.server import ClientSession
from tests.simulation.world import Datetime

Broken: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class Bug:
    """A planted bug.

    Attributes:
        patches: attributes of modules and classes, or items of dictionaries: of what, its name, and what returns what
            is there instead of the real one, which it gets.
        found_by: the tests of which at least one has to fail, as arguments of pytest; none for the simulation.

    """

    patches: tuple[tuple[Any, Any, Broken], ...]
    found_by: str = ""


BUGS: dict[str, Bug] = {}
RENEWED = (Phase.RENEWING, state.Renewed)
HOLDS_ALWAYS = (Session, "holds", lambda _real: lambda *_: True)


def bug(target: Any, key: Any, *more: tuple[Any, Any, Broken], found_by: str = "") -> Callable[[Broken], Broken]:
    """Make a function what breaks something, as a bug of its name."""

    def register(broken: Broken) -> Broken:
        BUGS[broken.__name__.replace("_", "-")] = Bug(((target, key, broken), *more), found_by)
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


# The election.


@bug(state.TRANSITIONS, RENEWED)
def trust_from_the_end_of_the_renewal(real: Any) -> Any:
    return lambda election, event, moment: real(election, replace(event, asked_at=moment.now), moment)


@bug(Config, "trust_window")
def trust_without_end(_real: Any) -> Any:
    return 1e9


@bug(state.TRANSITIONS, RENEWED, found_by="tests/unit/election/test_state.py")
def a_late_renewal_counts(real: Any) -> Any:
    return lambda election, *rest: real(replace(election, trusted_until=float("inf")), *rest)


@bug(ClientSession, "is_quiet")
def the_farewell_is_not_heard(_real: Any) -> Any:
    return lambda *_, **__: True


@bug(state.TRANSITIONS, (Phase.RELEASING, state.Released))
def a_successor_never_stands_again(_real: Any) -> Any:
    return lambda *_: state.Election(Phase.STOPPED)


@bug(state.TRANSITIONS, (Phase.POLLING, state.PlaceTaken), HOLDS_ALWAYS)
def a_term_before_the_lock(_real: Any) -> Any:
    return lambda election, event, _moment: replace(election, phase=Phase.ELECTED, place=event.place)


@bug(vars(lock_session.TRANSACTION_TERMS), "renew", found_by="tests/integration/test_election.py -k incident_1")
def the_lock_is_taken_again_as_a_check(_real: Any) -> Any:
    return "select 1 where pg_try_advisory_lock(%(classid)s::int, %(objid)s::int)"


@bug(vars(lock_session.TRANSACTION_TERMS), "renew", found_by="tests/integration/test_election.py -k incident_1")
def a_leader_is_known_by_its_name(_real: Any) -> Any:
    return "select 1 from pg_stat_activity where application_name = 'pgleader leader ' || %(node)s"


@bug(twins.OfElection, "take_place")
def a_successor_is_not_watched(real: Any) -> Any:
    def take_place(self: twins.Twin, *keys: int) -> Any:
        rows = real(self, *keys)
        self.session.idle_timeout = None
        return rows

    return take_place


# The ledger.


@bug(twins.OfStore, "fence")
def no_look_at_the_term(_real: Any) -> Any:
    def fence(self: twins.Twin) -> Any:
        self.tx.fenced = self.p.election, self.p.term
        return self.tx.view("elections").get(self.p.election)
        yield

    return fence


def _fence_of_a_snapshot(self: twins.Twin, *, share: bool) -> Any:
    self.tx.fenced = self.p.election, self.p.term
    row = self.tx.view("elections").get(self.p.election)
    yield None
    if share:
        yield from self.tx.lock_row("elections", self.p.election, SHARE)
    return row if row is not None and row["term"] == self.p.term else None


@bug(twins.OfStore, "fence")
def no_for_share(_real: Any) -> Any:
    return partialmethod(_fence_of_a_snapshot, share=False)


@bug(twins.OfStore, "fence")
def an_old_snapshot(_real: Any) -> Any:
    return partialmethod(_fence_of_a_snapshot, share=True)


# The schedule.


@bug(scheduler.TermBound, "sync", found_by="tests/unit/beat/test_scheduler.py -k overwrite")
def a_sync_after_the_loss(_real: Any) -> Any:
    return lambda self: super(scheduler.TermBound, self).sync()


@bug(publisher.Publisher, "_publish")
def marked_before_it_is_published(real: Any) -> Any:
    def publish(self: Any, dispatch: Any) -> None:
        self._settled(Outcome(dispatch.name, dispatch.slot, "published"))
        real(self, dispatch)

    return publish


@bug(slot_keeper, "task_id_of")
def a_task_id_with_the_time_in_it(real: Any) -> Any:
    return lambda election, entry, slot: real(election, f"{entry} {Datetime.now(UTC)}", slot)


@bug(slot_keeper.SlotKeeper, "publish_claimed")
def what_was_claimed_is_forgotten(_real: Any) -> Any:
    return lambda *_: None


@bug(term_runner.TermRunner, "_run_once")
def the_old_term_ends_the_new(real: Any) -> Any:
    def run_once(self: Any, term: Any, ended: Any) -> None:
        real(self, term, ended)
        with self._turn:
            self._end()

    return run_once


# Durable notifications.


@bug(relay.Round, "turn")
def a_wake_up_without_a_look(real: Any) -> Any:
    def turn(self: Any) -> bool:
        seen, self.looked = getattr(self, "looked", False), True
        return real(self) if seen and self._mailbox.newest() > self._seen else False

    return turn


@bug(relay.Round, "turn")
def a_sleep_beside_what_was_left(real: Any) -> Any:
    return lambda self: real(self) and False


@bug(relay.Round, "_dispatch_together")
def deleted_before_it_is_dispatched(real: Any) -> Any:
    def dispatch(self: Any, letters: Any) -> None:
        self._mailbox.dispatched(letters)
        real(self, letters)

    return dispatch


@bug(twins.OfStore, "notify")
def nobody_is_woken(real: Any) -> Any:
    def notify(self: twins.Twin) -> Any:
        with patch.object(self.tx, "try_lock", lambda *_: True):
            return (yield from real(self))

    return notify


# Leader-only tasks.


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


@bug(run_guard, "Reject")
def what_is_given_back_goes_elsewhere(_real: Any) -> Any:
    return lambda reason, **_: Reject(reason, requeue=False)


# When the leader leaves.


@bug(elector.Candidacy, "_close", found_by="tests/unit/election/test_elector.py")
def the_lock_is_let_go_first(_real: Any) -> Any:
    def close_at_once(self: Any, *, broken: bool) -> None:
        session, self._session = self._session, None
        if session is not None:
            if not broken:
                session.release(self._loss)
            session.close()

    return close_at_once
