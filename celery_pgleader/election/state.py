"""The whole algorithm of the election, as a table; no thread, clock, SQL or logger.

Rule 1: whatever decides about leadership is decided here.
Rule 2: a phase is one thing that the node is doing. It says which command the elector carries out next, and
        each event that the command can end with has a row in `TRANSITIONS`. Any other event is a bug.
Rule 3: time comes in as `now`, chance as `jitter`. Nothing is ever read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

from celery_pgleader.config import Config
from celery_pgleader.election.leadership import Term

FIRST_RETRY = 0.1
# Seconds, by chance half or all of them, for which who has handed the lock on leaves the line to others.
STEP_ASIDE = 0.2


class Phase(Enum):
    """What a node is doing."""

    STOPPED = "stopped"
    AWAY = "away"  # without a session, until the next attempt to connect
    CONNECTING = "connecting"
    POLLING = "polling"  # asking for a place
    FOLLOWER = "follower"  # until the next time to ask
    SUCCESSOR = "successor"  # waiting for the lock
    ELECTED = "elected"  # holding the lock, without a term yet
    LEADER = "leader"  # until the next renewal
    RENEWING = "renewing"
    RELEASING = "releasing"


@dataclass(frozen=True)
class Election:
    """The state of one node in one election.

    Attributes:
        phase: what the node is doing.
        until: when the pause of the phase ends (AWAY, FOLLOWER, LEADER).
        place: the place held while waiting for the lock.
        term: the term being led, if any.
        trusted_until: when trust in `term` ends.
        since: when the node began to stand for this election.
        failures: sessions that failed in a row.
        broken: the session is not to be used again, not even to release the lock.
        retiring: the node will not stand again.

    """

    phase: Phase = Phase.STOPPED
    until: float = 0.0
    place: int | None = None
    term: Term | None = None
    trusted_until: float = 0.0
    since: float = 0.0
    failures: int = 0
    broken: bool = False
    retiring: bool = False


# What the elector is to do next, and then report.


@dataclass(frozen=True)
class Pause:
    """Do nothing until then, or until asked for something."""

    until: float


@dataclass(frozen=True)
class Connect:
    """Open a session."""


@dataclass(frozen=True)
class TakePlace:
    """Try to take one of the places."""


@dataclass(frozen=True)
class AwaitLock:
    """Wait for the lock for one slice."""


@dataclass(frozen=True)
class MintTerm:
    """Mint a term, give back the place."""

    place: int


@dataclass(frozen=True)
class Renew:
    """Prove that the lock is still held, before trust ends."""

    term: Term
    trusted_until: float


@dataclass(frozen=True)
class Release:
    """End the session; unless it is broken, let go of its locks first."""

    broken: bool


Command: TypeAlias = Pause | Connect | TakePlace | AwaitLock | MintTerm | Renew | Release


# What the elector reports.


@dataclass(frozen=True)
class Started:
    """The node is to stand for the election."""


@dataclass(frozen=True)
class Elapsed:
    """The pause is over."""


@dataclass(frozen=True)
class Connected:
    """A session was opened."""


@dataclass(frozen=True)
class PlaceTaken:
    """The node holds a place."""

    place: int


@dataclass(frozen=True)
class PlacesFull:
    """Others hold the places."""


@dataclass(frozen=True)
class SliceOver:
    """The lock was not free during the slice."""


@dataclass(frozen=True)
class LockGranted:
    """The session holds the lock."""


@dataclass(frozen=True)
class TermMinted:
    """The session was seen to hold the lock, by a statement sent at `asked_at`, which also minted the term."""

    term: Term
    asked_at: float


@dataclass(frozen=True)
class Renewed:
    """The session was seen to hold the lock, by a statement sent at `asked_at`."""

    asked_at: float


@dataclass(frozen=True)
class NotHeld:
    """The session was seen not to hold the lock."""


@dataclass(frozen=True)
class HandedOn:
    """The session held the lock, and has given it and its place back: this node is not to lead now."""


@dataclass(frozen=True)
class Failed:
    """The command failed, and the session with it."""

    reason: str


@dataclass(frozen=True)
class Released:
    """The session is closed."""


@dataclass(frozen=True)
class ResignAsked:
    """Somebody wants another node to lead, and this one to stand back for a while."""

    stand_back: float
    reason: str = "resigned"


@dataclass(frozen=True)
class CampaignAsked:
    """The node is to try for a place now, rather than at the end of its pause."""


@dataclass(frozen=True)
class RetireAsked:
    """The node is to stand no more, but may lead its term to the end."""


@dataclass(frozen=True)
class StopAsked:
    """The node is to leave the election now."""


Request: TypeAlias = ResignAsked | CampaignAsked | RetireAsked | StopAsked
Event: TypeAlias = (
    Started
    | Elapsed
    | Connected
    | PlaceTaken
    | PlacesFull
    | SliceOver
    | LockGranted
    | TermMinted
    | Renewed
    | NotHeld
    | HandedOn
    | Failed
    | Released
    | Request
)


class IllegalTransition(Exception):
    """An event came in a phase that it cannot come in."""


@dataclass(frozen=True)
class Moment:
    """When, under which settings, and with which luck (0 ≤ jitter < 1) an event comes."""

    now: float
    config: Config
    jitter: float


def command(election: Election) -> Command | None:  # noqa: PLR0911 - one return for each command
    """Return what is to be done next, or nothing once stopped."""
    match election.phase:
        case Phase.STOPPED:
            return None
        case Phase.AWAY | Phase.FOLLOWER | Phase.LEADER:
            return Pause(election.until)
        case Phase.CONNECTING:
            return Connect()
        case Phase.POLLING:
            return TakePlace()
        case Phase.SUCCESSOR:
            return AwaitLock()
        case Phase.ELECTED:
            assert election.place is not None
            return MintTerm(election.place)
        case Phase.RENEWING:
            assert election.term is not None
            return Renew(election.term, election.trusted_until)
        case Phase.RELEASING:
            return Release(election.broken)


def advance(election: Election, event: Event, moment: Moment) -> Election:
    """Return the state after an event.

    Raises:
        IllegalTransition: the event cannot come in this phase.

    """
    handler = TRANSITIONS.get((election.phase, type(event)))
    if handler is None:
        raise IllegalTransition(f"{type(event).__name__} while {election.phase.value}")
    return handler(election, event, moment)


def _start(_election: Election, _event: Started, moment: Moment) -> Election:
    return Election(Phase.CONNECTING, since=moment.now)


def _connect(election: Election, _event: Elapsed | CampaignAsked, _moment: Moment) -> Election:
    return replace(election, phase=Phase.CONNECTING)


def _connected(election: Election, _event: Connected, moment: Moment) -> Election:
    return replace(election, phase=Phase.POLLING, since=moment.now)


def _connect_failed(election: Election, _event: Failed, moment: Moment) -> Election:
    return _away(replace(election, failures=election.failures + 1), moment)


def _poll(election: Election, _event: Elapsed | CampaignAsked, _moment: Moment) -> Election:
    return replace(election, phase=Phase.POLLING)


def _place_taken(election: Election, event: PlaceTaken, _moment: Moment) -> Election:
    return replace(election, phase=Phase.SUCCESSOR, place=event.place, failures=0)


def _places_full(election: Election, _event: PlacesFull, moment: Moment) -> Election:
    pause = moment.config.poll_interval * (0.8 + 0.4 * moment.jitter)
    return replace(election, phase=Phase.FOLLOWER, until=moment.now + pause, failures=0)


def _slice_over(election: Election, _event: SliceOver, _moment: Moment) -> Election:
    return election


def _lock_granted(election: Election, _event: LockGranted, _moment: Moment) -> Election:
    return replace(election, phase=Phase.ELECTED)


def _term_minted(election: Election, event: TermMinted, moment: Moment) -> Election:
    trusted_until = event.asked_at + moment.config.trust_window
    if moment.now >= trusted_until:
        return _release(election, broken=True)
    return replace(
        election,
        phase=Phase.LEADER,
        place=None,
        term=event.term,
        trusted_until=trusted_until,
        until=event.asked_at + moment.config.renew_interval,
    )


def _handed_on(election: Election, _event: HandedOn, moment: Moment) -> Election:
    pause = STEP_ASIDE * (0.5 + 0.5 * moment.jitter)
    return replace(election, phase=Phase.FOLLOWER, place=None, until=moment.now + pause)


def _renew(election: Election, _event: Elapsed, _moment: Moment) -> Election:
    return replace(election, phase=Phase.RENEWING)


def _renewed(election: Election, event: Renewed, moment: Moment) -> Election:
    # An answer after the window is no renewal: somebody may have led in between.
    if moment.now >= election.trusted_until:
        return _release(election, broken=True)
    return replace(
        election,
        phase=Phase.LEADER,
        trusted_until=event.asked_at + moment.config.trust_window,
        until=event.asked_at + moment.config.renew_interval,
    )


def _lost(election: Election, _event: NotHeld | Failed, _moment: Moment) -> Election:
    return _release(replace(election, failures=election.failures + 1), broken=True)


def _released(election: Election, _event: Released, moment: Moment) -> Election:
    if election.retiring:
        return Election(Phase.STOPPED)
    return _away(replace(election, place=None, broken=False), moment)


def _resign(election: Election, event: ResignAsked, moment: Moment) -> Election:
    return _release(replace(election, until=moment.now + event.stand_back))


def _retire(election: Election, _event: RetireAsked, _moment: Moment) -> Election:
    return _release(replace(election, retiring=True))


def _retire_later(election: Election, _event: Request, _moment: Moment) -> Election:
    return replace(election, retiring=True)


def _leave(election: Election, _event: StopAsked, _moment: Moment) -> Election:
    return _release(replace(election, retiring=True))


def _stop(_election: Election, _event: Request, _moment: Moment) -> Election:
    return Election(Phase.STOPPED)


def _ignore(election: Election, _event: Request, _moment: Moment) -> Election:
    return election


def _release(election: Election, *, broken: bool = False) -> Election:
    return replace(election, phase=Phase.RELEASING, term=None, trusted_until=0.0, broken=broken)


def _away(election: Election, moment: Moment) -> Election:
    pause = min(moment.config.ttl, FIRST_RETRY * 2 ** min(election.failures, 16)) * (0.5 + 0.5 * moment.jitter)
    # After a resignation `until` says how long to stand back; otherwise it has passed.
    return replace(election, phase=Phase.AWAY, until=max(election.until, moment.now + pause))


# Each row is typed by its own event; the key is what guarantees that a handler gets no other.
TRANSITIONS: Mapping[tuple[Phase, type[Event]], Callable[..., Election]] = {
    (Phase.STOPPED, Started): _start,
    (Phase.STOPPED, ResignAsked): _ignore,
    (Phase.STOPPED, CampaignAsked): _ignore,
    (Phase.STOPPED, RetireAsked): _ignore,
    (Phase.STOPPED, StopAsked): _ignore,
    (Phase.AWAY, Elapsed): _connect,
    (Phase.AWAY, ResignAsked): _ignore,
    (Phase.AWAY, CampaignAsked): _connect,
    (Phase.AWAY, RetireAsked): _stop,
    (Phase.AWAY, StopAsked): _stop,
    (Phase.CONNECTING, Connected): _connected,
    (Phase.CONNECTING, Failed): _connect_failed,
    (Phase.CONNECTING, ResignAsked): _ignore,
    (Phase.CONNECTING, CampaignAsked): _ignore,
    (Phase.CONNECTING, RetireAsked): _stop,
    (Phase.CONNECTING, StopAsked): _stop,
    (Phase.POLLING, PlaceTaken): _place_taken,
    (Phase.POLLING, PlacesFull): _places_full,
    (Phase.POLLING, Failed): _lost,
    (Phase.POLLING, ResignAsked): _ignore,
    (Phase.POLLING, CampaignAsked): _ignore,
    (Phase.POLLING, RetireAsked): _retire,
    (Phase.POLLING, StopAsked): _leave,
    (Phase.FOLLOWER, Elapsed): _poll,
    (Phase.FOLLOWER, Failed): _lost,
    (Phase.FOLLOWER, ResignAsked): _ignore,
    (Phase.FOLLOWER, CampaignAsked): _poll,
    (Phase.FOLLOWER, RetireAsked): _retire,
    (Phase.FOLLOWER, StopAsked): _leave,
    (Phase.SUCCESSOR, LockGranted): _lock_granted,
    (Phase.SUCCESSOR, SliceOver): _slice_over,
    (Phase.SUCCESSOR, Failed): _lost,
    (Phase.SUCCESSOR, ResignAsked): _ignore,
    (Phase.SUCCESSOR, CampaignAsked): _ignore,
    (Phase.SUCCESSOR, RetireAsked): _retire,
    (Phase.SUCCESSOR, StopAsked): _leave,
    (Phase.ELECTED, TermMinted): _term_minted,
    (Phase.ELECTED, NotHeld): _lost,
    (Phase.ELECTED, HandedOn): _handed_on,
    (Phase.ELECTED, Failed): _lost,
    (Phase.ELECTED, ResignAsked): _resign,
    (Phase.ELECTED, CampaignAsked): _ignore,
    (Phase.ELECTED, RetireAsked): _retire,
    (Phase.ELECTED, StopAsked): _leave,
    (Phase.LEADER, Elapsed): _renew,
    (Phase.LEADER, Failed): _lost,
    (Phase.LEADER, ResignAsked): _resign,
    (Phase.LEADER, CampaignAsked): _ignore,
    (Phase.LEADER, RetireAsked): _retire_later,
    (Phase.LEADER, StopAsked): _leave,
    (Phase.RENEWING, Renewed): _renewed,
    (Phase.RENEWING, NotHeld): _lost,
    (Phase.RENEWING, Failed): _lost,
    (Phase.RENEWING, ResignAsked): _resign,
    (Phase.RENEWING, CampaignAsked): _ignore,
    (Phase.RENEWING, RetireAsked): _retire_later,
    (Phase.RENEWING, StopAsked): _leave,
    (Phase.RELEASING, Released): _released,
    (Phase.RELEASING, ResignAsked): _ignore,
    (Phase.RELEASING, CampaignAsked): _ignore,
    (Phase.RELEASING, RetireAsked): _retire_later,
    (Phase.RELEASING, StopAsked): _retire_later,
}
