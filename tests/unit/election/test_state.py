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


def test_table_has_every_event() -> None:
    """An event without a row could never be handled."""
    assert {event for _, event in state.TRANSITIONS} == set(EVENTS)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_every_cell_advances_or_raises(phase: Phase, event: type[state.Event]) -> None:
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
def test_every_phase_accepts_every_request(phase: Phase, request_type: type[state.Request]) -> None:
    """Other threads make requests whenever they like."""
    assert (phase, request_type) in state.TRANSITIONS


def test_node_advances_from_start_to_leader() -> None:
    """It is trusted from the moment at which the term was asked for."""
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


def test_trust_is_counted_from_the_start_of_the_renewal() -> None:
    """A slow answer must not lengthen leadership."""
    renewing = replace(LEADING, phase=Phase.RENEWING)
    election = state.advance(renewing, state.Renewed(asked_at=101.0), at(104.0))
    assert election.trusted_until == pytest.approx(101.0 + CONFIG.trust_window)


def test_answer_after_the_trust_window_ends_the_term() -> None:
    """By then another node may have led."""
    renewing = replace(LEADING, phase=Phase.RENEWING)
    election = state.advance(renewing, state.Renewed(asked_at=104.4), at(104.6))
    assert election.phase is Phase.RELEASING
    assert election.term is None


def test_term_minted_too_late_is_not_led() -> None:
    """A node that slept between asking and hearing must not believe the answer."""
    election = state.advance(in_phase(Phase.ELECTED), state.TermMinted(TERM, 95.0), at(100.0))
    assert election.phase is Phase.RELEASING
    assert election.term is None


@pytest.mark.parametrize("event", [state.NotHeld(), state.Failed("gone")])
def test_failed_or_denied_renewal_ends_term_and_session(event: state.Event) -> None:
    election = play(replace(LEADING, phase=Phase.RENEWING), event)
    assert election.term is None
    assert state.command(election) == state.Release(broken=True)


def test_node_that_resigned_stands_back() -> None:
    """The other nodes come first."""
    election = play(LEADING, state.ResignAsked(30.0))
    assert state.command(election) == state.Release(broken=False)
    election = play(election, state.Released())
    assert election.phase is Phase.AWAY
    assert election.until == 130.0


def test_node_that_hands_the_lock_on_leaves_its_place_for_a_moment() -> None:
    """The session is kept, the place is not."""
    election = play(in_phase(Phase.ELECTED), state.HandedOn())
    assert (election.phase, election.place, election.term) == (Phase.FOLLOWER, None, None)
    pauses = [
        state.advance(in_phase(Phase.ELECTED), state.HandedOn(), at(jitter=jitter)).until - 100.0
        for jitter in (0.0, 0.999)
    ]
    assert pauses == pytest.approx([state.STEP_ASIDE / 2, state.STEP_ASIDE], rel=1e-3)
    assert play(election, state.Elapsed()).phase is Phase.POLLING


@pytest.mark.parametrize(("phase", "next_phase"), [(Phase.FOLLOWER, Phase.POLLING), (Phase.AWAY, Phase.CONNECTING)])
def test_campaign_ends_a_pause(phase: Phase, next_phase: Phase) -> None:
    """The node does not wait for its next poll."""
    assert play(in_phase(phase), state.CampaignAsked()).phase is next_phase


@pytest.mark.parametrize("phase", [Phase.LEADER, Phase.RENEWING, Phase.SUCCESSOR, Phase.STOPPED])
def test_campaign_changes_nothing_outside_of_a_pause(phase: Phase) -> None:
    assert play(in_phase(phase), state.CampaignAsked()) == in_phase(phase)


def test_backoff_grows_to_the_ttl_with_jitter() -> None:
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


def test_working_session_ends_the_backoff() -> None:
    """The next outage starts from the beginning."""
    election = Election(Phase.POLLING, failures=9)
    assert play(election, state.PlaceTaken(1)).failures == 0
    assert play(election, state.PlacesFull()).failures == 0


def test_polls_are_spread_by_jitter() -> None:
    """Followers that started together do not ask together."""
    polling = in_phase(Phase.POLLING)
    first = state.advance(polling, state.PlacesFull(), at(jitter=0.0)).until
    last = state.advance(polling, state.PlacesFull(), at(jitter=0.999)).until
    assert first == pytest.approx(100.0 + 0.8 * CONFIG.poll_interval)
    assert last == pytest.approx(100.0 + 1.2 * CONFIG.poll_interval, rel=1e-3)


def test_leader_that_retires_leads_on_and_then_stops() -> None:
    """A shutdown lets leader-only work come to its end, and is not elected again."""
    election = play(LEADING, state.RetireAsked())
    assert election.phase is Phase.LEADER
    election = play(replace(election, phase=Phase.RENEWING), state.Failed("gone"), state.Released())
    assert election.phase is Phase.STOPPED


@pytest.mark.parametrize("phase", [Phase.POLLING, Phase.FOLLOWER, Phase.SUCCESSOR, Phase.ELECTED])
def test_follower_that_retires_never_leads(phase: Phase) -> None:
    """A dying worker must not be elected."""
    election = play(in_phase(phase), state.RetireAsked())
    assert state.command(election) == state.Release(broken=False)
    assert play(election, state.Released()).phase is Phase.STOPPED


@pytest.mark.parametrize("phase", Phase)
def test_stop_ends_stopped_from_every_phase(phase: Phase) -> None:
    """The node lets go of the lock if its session is sound."""
    election = play(in_phase(phase), state.StopAsked())
    if election.phase is Phase.RELEASING:
        election = play(election, state.Released())
    assert election.phase is Phase.STOPPED
