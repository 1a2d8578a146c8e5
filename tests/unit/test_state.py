"""The election's table: every cell, and the few sequences that matter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_pgleader.config import Config
from celery_pgleader.election import state
from celery_pgleader.election.leadership import Term
from celery_pgleader.election.state import Election, Moment, Phase

CONFIG = Config(database_url="host=nowhere")
TERM = Term(7, "default", "node", 42)

EVENTS = {
    type(event): event
    for event in (
        state.Started(),
        state.Elapsed(),
        state.Connected(),
        state.PlaceTaken(1),
        state.PlacesFull(),
        state.SliceOver(),
        state.LockGranted(),
        state.TermMinted(TERM, 100.0),
        state.Renewed(100.0),
        state.NotHeld(),
        state.HandedOn(),
        state.Failed("gone"),
        state.Released(),
        state.ResignAsked(1.0),
        state.CampaignAsked(),
        state.RetireAsked(),
        state.StopAsked(),
    )
}

LEADING = Election(Phase.LEADER, term=TERM, trusted_until=104.5, until=101.0)


def at(now: float = 100.0, jitter: float = 0.5) -> Moment:
    """Return a moment under the default settings."""
    return Moment(now, CONFIG, jitter)


def in_phase(phase: Phase) -> Election:
    """Return a plausible state of a phase."""
    return Election(
        phase,
        until=90.0,
        place=1 if phase in {Phase.SUCCESSOR, Phase.ELECTED} else None,
        term=TERM if phase in {Phase.LEADER, Phase.RENEWING} else None,
        trusted_until=104.5 if phase in {Phase.LEADER, Phase.RENEWING} else 0.0,
    )


def play(election: Election, *events: state.Event, now: float = 100.0) -> Election:
    """Advance through several events at one time."""
    for event in events:
        election = state.advance(election, event, at(now))
    return election


def test_the_table_names_every_event() -> None:
    """An event that no row knows could never be handled."""
    assert {event for _, event in state.TRANSITIONS} == set(EVENTS)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_every_cell(phase: Phase, event: type[state.Event]) -> None:
    """A row leads to a state whose command can be carried out; a missing row raises and changes nothing."""
    before = in_phase(phase)
    if (phase, event) in state.TRANSITIONS:
        after = state.advance(before, EVENTS[event], at())
        assert (state.command(after) is None) == (after.phase is Phase.STOPPED)
        assert (after.term is not None) == (after.phase in {Phase.LEADER, Phase.RENEWING})
    else:
        with pytest.raises(state.IllegalTransition, match=phase.value):
            state.advance(before, EVENTS[event], at())
        assert before == in_phase(phase)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("request_type", [state.ResignAsked, state.CampaignAsked, state.RetireAsked, state.StopAsked])
def test_requests_may_come_at_any_time(phase: Phase, request_type: type[state.Request]) -> None:
    """Other threads make requests whenever they like."""
    assert (phase, request_type) in state.TRANSITIONS


def test_from_start_to_leader() -> None:
    """The straight way to leadership, with trust from the moment the lock was asked for."""
    election = play(
        Election(),
        state.Started(),
        state.Connected(),
        state.PlaceTaken(2),
        state.SliceOver(),
        state.LockGranted(),
        state.TermMinted(TERM, 99.9),
    )
    assert election.phase is Phase.LEADER
    assert election.term == TERM
    assert election.trusted_until == pytest.approx(99.9 + CONFIG.ttl - CONFIG.trust_margin)
    assert state.command(election) == state.Pause(99.9 + CONFIG.renew_interval)


def test_trust_is_anchored_at_the_start_of_the_renewal() -> None:
    """A slow answer must not lengthen leadership."""
    renewing = replace(LEADING, phase=Phase.RENEWING)
    election = state.advance(renewing, state.Renewed(asked_at=101.0), at(104.0))
    assert election.trusted_until == pytest.approx(101.0 + CONFIG.trust_window)


def test_an_answer_after_the_trust_window_is_no_renewal() -> None:
    """By then somebody else may have led."""
    renewing = replace(LEADING, phase=Phase.RENEWING)
    election = state.advance(renewing, state.Renewed(asked_at=104.4), at(104.6))
    assert election.phase is Phase.RELEASING
    assert election.term is None


def test_a_term_minted_too_late_is_not_led() -> None:
    """A node that slept between asking and hearing must not believe the answer."""
    election = state.advance(in_phase(Phase.ELECTED), state.TermMinted(TERM, 95.0), at(100.0))
    assert election.phase is Phase.RELEASING
    assert election.term is None


@pytest.mark.parametrize("event", [state.NotHeld(), state.Failed("gone")])
def test_doubt_ends_the_term(event: state.Event) -> None:
    """A renewal that fails, or says no, ends the term and the session."""
    election = play(replace(LEADING, phase=Phase.RENEWING), event)
    assert election.term is None
    assert state.command(election) == state.Release(broken=True)


def test_a_resignation_stands_back() -> None:
    """Whoever resigns lets the others have a turn first."""
    election = play(LEADING, state.ResignAsked(30.0))
    assert state.command(election) == state.Release(broken=False)
    election = play(election, state.Released())
    assert election.phase is Phase.AWAY
    assert election.until == 130.0


def test_who_hands_the_lock_on_leaves_the_line_for_a_moment() -> None:
    """The session is kept, the place is not, and the node comes back soon."""
    election = play(in_phase(Phase.ELECTED), state.HandedOn())
    assert (election.phase, election.place, election.term) == (Phase.FOLLOWER, None, None)
    pauses = [
        state.advance(in_phase(Phase.ELECTED), state.HandedOn(), at(jitter=jitter)).until - 100.0
        for jitter in (0.0, 0.999)
    ]
    assert pauses == pytest.approx([state.STEP_ASIDE / 2, state.STEP_ASIDE], rel=1e-3)
    assert play(election, state.Elapsed()).phase is Phase.POLLING


@pytest.mark.parametrize(("phase", "next_phase"), [(Phase.FOLLOWER, Phase.POLLING), (Phase.AWAY, Phase.CONNECTING)])
def test_a_campaign_ends_a_pause(phase: Phase, next_phase: Phase) -> None:
    """Whoever is asked to campaign does not wait for the next poll."""
    assert play(in_phase(phase), state.CampaignAsked()).phase is next_phase


@pytest.mark.parametrize("phase", [Phase.LEADER, Phase.RENEWING, Phase.SUCCESSOR, Phase.STOPPED])
def test_a_campaign_changes_nothing_else(phase: Phase) -> None:
    """Who leads, or waits for the lock, goes on."""
    assert play(in_phase(phase), state.CampaignAsked()) == in_phase(phase)


def test_backoff_grows_to_the_ttl_and_is_jittered() -> None:
    """A server that is away is not stormed, and never forgotten."""
    election = Election(Phase.CONNECTING)
    pauses = []
    for _ in range(12):
        election = play(election, state.Failed("refused"))
        pauses.append(election.until - 100.0)
        election = play(election, state.Elapsed())
        election = replace(election, until=0.0)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(0.75 * CONFIG.ttl)
    earliest = state.advance(election, state.Failed("refused"), at(jitter=0.0)).until
    latest = state.advance(election, state.Failed("refused"), at(jitter=0.999)).until
    assert earliest < latest


def test_a_session_that_worked_ends_the_backoff() -> None:
    """The next outage starts from the beginning."""
    election = Election(Phase.POLLING, failures=9)
    assert play(election, state.PlaceTaken(1)).failures == 0
    assert play(election, state.PlacesFull()).failures == 0


def test_polls_are_spread() -> None:
    """Followers that started together do not ask together."""
    polling = in_phase(Phase.POLLING)
    first = state.advance(polling, state.PlacesFull(), at(jitter=0.0)).until
    last = state.advance(polling, state.PlacesFull(), at(jitter=0.999)).until
    assert first == pytest.approx(100.0 + 0.8 * CONFIG.poll_interval)
    assert last == pytest.approx(100.0 + 1.2 * CONFIG.poll_interval, rel=1e-3)


def test_who_retires_as_leader_leads_on_and_then_stops() -> None:
    """A shutdown lets leader-only work come to its end, and is not elected again."""
    election = play(LEADING, state.RetireAsked())
    assert election.phase is Phase.LEADER
    election = play(replace(election, phase=Phase.RENEWING), state.Failed("gone"), state.Released())
    assert election.phase is Phase.STOPPED


@pytest.mark.parametrize("phase", [Phase.POLLING, Phase.FOLLOWER, Phase.SUCCESSOR, Phase.ELECTED])
def test_who_retires_before_leading_never_leads(phase: Phase) -> None:
    """A dying worker must not be elected."""
    election = play(in_phase(phase), state.RetireAsked())
    assert state.command(election) == state.Release(broken=False)
    assert play(election, state.Released()).phase is Phase.STOPPED


@pytest.mark.parametrize("phase", Phase)
def test_stop_always_ends_stopped(phase: Phase) -> None:
    """Whatever a node is doing, it can be stopped, and lets go of the lock if its session is sound."""
    election = play(in_phase(phase), state.StopAsked())
    if election.phase is Phase.RELEASING:
        election = play(election, state.Released())
    assert election.phase is Phase.STOPPED
