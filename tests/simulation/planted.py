"""Bugs that are planted to see that the tests find them: small patches of the package, or of a statement's twin.

`docs/simulation.md` says which suite has to find which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from celery.exceptions import Reject

from celery_pgleader.beat import publisher, slot_keeper, slots
from celery_pgleader.beat.slots import UTC
from celery_pgleader.election import elector, leadership, lock_session, state, term_runner
from celery_pgleader.election.state import Phase
from celery_pgleader.notifications import relay
from celery_pgleader.store import Outcome
from celery_pgleader.tasks import run_guard, turn
from celery_pgleader.worker import participant
from tests.simulation import twins
from tests.simulation.postgres import SHARE, Steps, Transaction
from tests.simulation.world import Datetime

Plant = Callable[[ExitStack], None]


@dataclass(frozen=True)
class Bug:
    """A planted bug.

    Attributes:
        name: its name.
        plant: has it there until the stack is closed.
        found_by: the tests of which at least one has to fail, as arguments of pytest; none for the simulation.

    """

    name: str
    plant: Plant
    found_by: str = ""


BUGS: dict[str, Bug] = {}


def bug(found_by: str = "") -> Callable[[Plant], Plant]:
    """Register a bug by its function's name."""

    def register(plant: Plant) -> Plant:
        name = plant.__name__.replace("_", "-")
        BUGS[name] = Bug(name, plant, found_by)
        return plant

    return register


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Have a bug inside of the block."""
    with ExitStack() as stack:
        BUGS[name].plant(stack)
        yield


# The election.


@bug()
def trust_from_the_end_of_the_renewal(stack: ExitStack) -> None:
    """A slow answer makes trust last longer."""
    real = state._renewed

    def renewed(election: Any, event: state.Renewed, moment: state.Moment) -> Any:
        return real(election, replace(event, asked_at=moment.now), moment)

    stack.enter_context(patch.dict(state.TRANSITIONS, {(Phase.RENEWING, state.Renewed): renewed}))


@bug()
def trust_without_end(stack: ExitStack) -> None:
    """A leader that hangs still trusts its term when it wakes up."""
    stack.enter_context(patch("celery_pgleader.config.Config.trust_window", 1e9))


@bug("tests/unit/test_state.py")
def a_late_renewal_counts(stack: ExitStack) -> None:
    """A renewal that is answered when trust has ended goes on with the term."""
    real = state._renewed

    def renewed(election: Any, event: state.Renewed, moment: state.Moment) -> Any:
        return real(replace(election, trusted_until=float("inf")), event, moment)

    stack.enter_context(patch.dict(state.TRANSITIONS, {(Phase.RENEWING, state.Renewed): renewed}))


@bug()
def the_farewell_is_not_heard(stack: ExitStack) -> None:
    """A leader whose session was ended trusts its term until its next renewal."""
    stack.enter_context(patch("tests.simulation.server.ClientSession.is_quiet", lambda *_, **__: True))


@bug()
def a_successor_never_stands_again(stack: ExitStack) -> None:
    """Who has lost a session does not open another."""

    def released(_election: Any, _event: state.Released, _moment: state.Moment) -> Any:
        return state.Election(Phase.STOPPED)

    stack.enter_context(patch.dict(state.TRANSITIONS, {(Phase.RELEASING, state.Released): released}))


@bug()
def a_term_before_the_lock(stack: ExitStack) -> None:
    """A successor mints a term when it has a place, and does not look whether it holds the lock."""

    def place_taken(election: Any, event: state.PlaceTaken, _moment: state.Moment) -> Any:
        return replace(election, phase=Phase.ELECTED, place=event.place)

    stack.enter_context(patch.dict(state.TRANSITIONS, {(Phase.POLLING, state.PlaceTaken): place_taken}))
    _without_lock(stack)


@bug("tests/integration/test_election.py -k incident_1")
def the_lock_is_taken_again_as_a_check(stack: ExitStack) -> None:
    """A renewal asks for the lock, which its holder is granted as often as it asks, and anybody if it is free."""
    _renew_by(stack, "select 1 where pg_try_advisory_lock(%(classid)s::int, %(objid)s::int)")


@bug("tests/integration/test_election.py -k incident_1")
def a_leader_is_known_by_its_name(stack: ExitStack) -> None:
    """A renewal looks for a session of the node's name, whatever it holds."""
    _renew_by(stack, "select 1 from pg_stat_activity where application_name = 'pgleader leader ' || %(node)s")


def _renew_by(stack: ExitStack, statement: str) -> None:
    terms = lock_session.TRANSACTION_TERMS
    stack.callback(object.__setattr__, terms, "renew", terms.renew)
    object.__setattr__(terms, "renew", statement)


@bug()
def a_successor_is_not_watched(stack: ExitStack) -> None:
    """A successor that hangs when it is granted the lock keeps it."""
    real = twins.find("take_place")

    def take_place(tx: Transaction, *keys: int, **p: Any) -> Steps:
        rows = yield from real(tx, *keys, **p)
        tx.session.idle_timeout = None
        return rows

    stack.callback(twins.substitute("take_place", take_place))


def _without_lock(stack: ExitStack) -> None:
    stack.enter_context(patch("tests.simulation.postgres.Database.holds", lambda *_: True))


# The ledger.


@bug()
def no_look_at_the_term(stack: ExitStack) -> None:
    """A leader that was replaced claims slots."""

    def fence(tx: Transaction, election: str, term: int) -> Any:
        tx.fenced = election, term
        return tx.view("elections").get(election)
        yield

    stack.enter_context(patch.object(twins, "fence", fence))


@bug()
def no_for_share(stack: ExitStack) -> None:
    """A new leader's term does not wait for a claim that is under way."""

    def fence(tx: Transaction, election: str, term: int) -> Any:
        tx.fenced = election, term
        row = tx.view("elections").get(election)
        yield None
        return row if row is not None and row["term"] == term else None

    stack.enter_context(patch.object(twins, "fence", fence))


@bug()
def an_old_snapshot(stack: ExitStack) -> None:
    """The term is locked, but as it was when the statement began."""

    def fence(tx: Transaction, election: str, term: int) -> Any:
        tx.fenced = election, term
        row = tx.view("elections").get(election)
        yield None
        yield from tx.lock_row("elections", election, SHARE)
        return row if row is not None and row["term"] == term else None

    stack.enter_context(patch.object(twins, "fence", fence))


# The schedule.


@bug("tests/integration/test_schedule_file.py -k lost_the_lead")
def a_sync_after_the_loss(stack: ExitStack) -> None:
    """A scheduler that is closed writes its state over that of the next leader."""
    stack.enter_context(patch.object(leadership.Leadership, "holds", lambda *_: True))


@bug()
def marked_before_it_is_published(stack: ExitStack) -> None:
    """A slot is written down as published, and then published."""
    real = publisher.Publisher._publish

    def publish(self: Any, dispatch: Any) -> None:
        self._settled(Outcome(dispatch.name, dispatch.slot, "published"))
        real(self, dispatch)

    stack.enter_context(patch.object(publisher.Publisher, "_publish", publish))


@bug()
def a_task_id_with_the_time_in_it(stack: ExitStack) -> None:
    """A slot that is published again has another task id."""
    real = slots.task_id_of

    def task_id_of(election: str, entry: str, slot: Any) -> str:
        return real(election, f"{entry} {Datetime.now(UTC)}", slot)

    stack.enter_context(patch.object(slot_keeper, "task_id_of", task_id_of))


@bug()
def what_was_claimed_is_forgotten(stack: ExitStack) -> None:
    """A new leader does not publish what its predecessor had claimed."""
    stack.enter_context(patch.object(slot_keeper.SlotKeeper, "publish_claimed", lambda *_: None))


@bug()
def the_old_term_ends_the_new(stack: ExitStack) -> None:
    """The end of the old term's run ends the new term's."""
    real = term_runner.TermRunner._run_once

    def run_once(self: Any, term: Any, ended: Any) -> None:
        real(self, term, ended)
        with self._turn:
            self._end()

    stack.enter_context(patch.object(term_runner.TermRunner, "_run_once", run_once))


# Durable notifications.


@bug()
def a_wake_up_without_a_look(stack: ExitStack) -> None:
    """What was written before the relay began to listen is not looked for."""
    real = relay.Round.turn

    def turn(self: Any) -> bool:
        seen, self.looked = getattr(self, "looked", False), True
        return real(self) if seen and self._mailbox.newest() > self._seen else False

    stack.enter_context(patch.object(relay.Round, "turn", turn))


@bug()
def a_sleep_beside_what_was_left(stack: ExitStack) -> None:
    """A relay that senders saw asleep all the while does not look for what its last batch had no room for."""
    real = relay.Round.turn
    stack.enter_context(patch.object(relay.Round, "turn", lambda self: real(self) and False))


@bug()
def deleted_before_it_is_dispatched(stack: ExitStack) -> None:
    """A notification leaves the mailbox before the broker has it."""
    real = relay.Round._dispatch_together

    def dispatch(self: Any, letters: Any) -> None:
        self._mailbox.dispatched(letters)
        real(self, letters)

    stack.enter_context(patch.object(relay.Round, "_dispatch_together", dispatch))


@bug()
def nobody_is_woken(stack: ExitStack) -> None:
    """A sender that finds nobody asleep does not say that it is on the way."""
    real = twins.find("notify")

    def notify(tx: Transaction, **p: Any) -> Steps:
        with patch.object(tx, "try_lock", lambda *_: True):
            rows = yield from real(tx, **p)
        return rows

    stack.callback(twins.substitute("notify", notify))


# Leader-only tasks.


@bug()
def the_turn_is_not_waited_for(stack: ExitStack) -> None:
    """A leader runs tasks while those of an earlier one, who lives, go on."""

    def take(self: Any, _lock: Any, term: Any, _ended: Any) -> None:
        self._page.give_turn(term.number)
        self._on_turn()

    stack.enter_context(patch.object(turn.Turn, "_take", take))


@bug()
def the_lock_is_free_before_the_drain(stack: ExitStack) -> None:
    """A leader that shuts down lets go of everything while its tasks run."""

    def wind_down(self: Any) -> None:
        self._turn.give_up()
        self._elector.leave()

    stack.enter_context(patch.object(participant.Participant, "wind_down", wind_down))


@bug()
def what_is_given_back_goes_elsewhere(stack: ExitStack) -> None:
    """What has not begun when the lead is lost does not go back to the leader queue."""
    stack.enter_context(patch.object(run_guard, "Reject", lambda reason, **_: Reject(reason, requeue=False)))


# When the leader leaves.


@bug("tests/unit/test_elector.py")
def the_lock_is_let_go_first(stack: ExitStack) -> None:
    """The lock is free while somebody still acts for the old leader."""
    stack.enter_context(patch.object(elector.Candidacy, "_close", _close_at_once))


def _close_at_once(self: Any, *, broken: bool) -> None:
    session, self._session = self._session, None
    if session is not None:
        if not broken:
            session.release(self._loss)
        session.close()
