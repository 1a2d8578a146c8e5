"""The thread that stands for one node in an election: it does what `state` says and reports back."""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from psycopg import Error

from celery_pgleader.config import Config
from celery_pgleader.election import state
from celery_pgleader.election.leadership import Clock, Leadership, Term
from celery_pgleader.election.lock_session import HandedOn, LockSession
from celery_pgleader.election.requests import Requests
from celery_pgleader.election.state import Election, Event, Moment, Phase
from celery_pgleader.errors import ServerUnsuitable
from celery_pgleader.postgres import SessionShared

LONGEST_PAUSE = 3600.0
CONNECTING_PATIENCE = 0.1
# Seconds for which a node that was in trouble as the leader does not stand.
COOL_DOWN = 10.0


class LockSessionPort(Protocol):
    """What an elector needs of its session; see `LockSession`."""

    def fileno(self) -> int:
        """Return the socket."""

    def check(self) -> None:
        """Raise `psycopg.OperationalError` if the server has ended the session."""

    def is_quiet(self) -> bool:
        """Tell whether the server has said nothing unasked."""

    def take_place(self) -> int | None:
        """Try to take a place; return which, or none."""

    def await_lock(self, interrupted: Callable[[], bool], /) -> bool:
        """Wait for the lock for one slice; tell whether it was granted."""

    def mint_term(self, place: int, /) -> tuple[int, int] | None:
        """Return a new term and the backend's pid, or none if the lock is not held."""

    def renew(self, backend_pid: int, seconds: float, /) -> bool:
        """Tell whether the lock is still held."""

    def release(self, reason: str, /) -> None:
        """Let go of every lock."""

    def close(self) -> None:
        """End the session."""


class Elector:
    """Stands for a node in an election.

    What it finds out is told to its `leadership`, which outlives every session and term.
    """

    def __init__(
        self,
        config: Config,
        node: str | None = None,
        *,
        leadership: Leadership | None = None,
        open_session: Callable[[Config, str], LockSessionPort] = LockSession.open,
        clock: Clock = time.monotonic,
        jitter: Callable[[], float] = random.random,
        trouble: Callable[[Term], str | None] = lambda _term: None,
        renewed: Callable[[float], object] = lambda _seconds: None,
        logger: logging.Logger | None = None,
    ) -> None:
        """Prepare; nothing happens before `start`.

        Args:
            config: which election, where, and how fast.
            node: who stands; by default host and process id.
            leadership: who is told; by default a new one.
            open_session: opens a session for the election.
            clock: monotonic seconds.
            jitter: draws from [0, 1).
            trouble: asked before each renewal why this node should not lead any longer.
            renewed: told how many seconds each renewal took.
            logger: by default this module's.

        """
        self.node = node or f"{socket.gethostname()}-{os.getpid()}"
        self.leadership = leadership or Leadership(clock)
        self._config = config
        self._open_session = open_session
        self._clock = clock
        self._jitter = jitter
        self._trouble = trouble
        self._renewed = renewed
        self._logger = logger or logging.getLogger(__name__)
        self._candidacy: Candidacy | None = None

    @property
    def phase(self) -> Phase:
        """What the node is doing."""
        candidacy = self._candidacy
        return candidacy.phase if candidacy is not None else Phase.STOPPED

    def start(self) -> None:
        """Begin to stand for the election, in a thread; return at once."""
        if self._candidacy is None or not self._candidacy.is_alive():
            self._candidacy = Candidacy(
                self._config,
                self.node,
                self.leadership,
                self._open_session,
                self._clock,
                self._jitter,
                self._trouble,
                self._renewed,
                self._logger,
            )
            self._candidacy.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """Leave the election, letting go of the lock.

        Args:
            timeout: seconds to wait for that at most.

        Returns:
            Whether the elector has stopped.

        """
        candidacy = self._candidacy
        if candidacy is None:
            return True
        candidacy.ask(state.StopAsked())
        if candidacy is threading.current_thread():
            return False
        # An attempt to connect cannot be cut short, and has no lock yet to let go of; its thread ends after it.
        candidacy.join(min(timeout, CONNECTING_PATIENCE) if candidacy.phase is Phase.CONNECTING else timeout)
        self._candidacy = None
        return not candidacy.is_alive()

    def leave(self) -> None:
        """Ask for what `stop` does without waiting for it. Safe in a signal handler."""
        self._ask(state.StopAsked())

    def resign(self, stand_back: float | None = None, reason: str = "resigned") -> None:
        """Let another node lead.

        Args:
            stand_back: seconds for which this node will not stand; by default a renew interval.
            reason: why, in a few words.

        """
        seconds = self._config.renew_interval if stand_back is None else stand_back
        self._ask(state.ResignAsked(seconds, reason))

    def campaign(self) -> None:
        """Try for a place in the line now, rather than at the end of a pause. Safe in a signal handler."""
        self._ask(state.CampaignAsked())

    def step_back(self, reason: str) -> None:
        """Let another node lead, since this one is not fit to, and do not stand for a while."""
        self._ask(state.ResignAsked(COOL_DOWN, reason))

    def retire(self) -> None:
        """Stand no more, but lead a term that was begun until `stop`. Safe in a signal handler."""
        self._ask(state.RetireAsked())

    def _ask(self, request: state.Request) -> None:
        candidacy = self._candidacy
        if candidacy is not None:
            candidacy.ask(request)


class Candidacy(threading.Thread):
    """One time of standing for the election, from start to stop."""

    def __init__(
        self,
        config: Config,
        node: str,
        leadership: Leadership,
        open_session: Callable[[Config, str], LockSessionPort],
        clock: Clock,
        jitter: Callable[[], float],
        trouble: Callable[[Term], str | None],
        renewed: Callable[[float], object],
        logger: logging.Logger,
    ) -> None:
        """Prepare; see `Elector`."""
        super().__init__(name="pgleader-elector", daemon=True)
        self._config = config
        self._node = node
        self._leadership = leadership
        self._open_session = open_session
        self._clock = clock
        self._jitter = jitter
        self._trouble = trouble
        self._renewed = renewed
        self._logger = logger
        self._requests: Requests[state.Request] = Requests()
        self._election = Election()
        self._session: LockSessionPort | None = None
        self._last_trouble = ""
        self._loss = ""

    @property
    def phase(self) -> Phase:
        """What the node is doing."""
        return self._election.phase

    def ask(self, request: state.Request) -> None:
        """Leave a request. Safe in a signal handler."""
        self._requests.put(request)

    def run(self) -> None:
        """Stand until asked to stop."""
        try:
            self._stand()
        except Exception:
            # A bug; whoever acts for the leader must hear of it, and the lock must be free for others.
            self._logger.exception("pgleader: the elector failed, this node no longer stands")
            if self._election.term is not None:
                self._leadership.lose(self._election.term, "the elector failed")
            self._election = Election()
        finally:
            self._close(broken=True)
            self._requests.close()

    def _stand(self) -> None:
        self._advance(state.Started())
        while (command := state.command(self._election)) is not None:
            request = self._requests.take()
            if request is None:
                self._advance(self._carry_out(command))
            else:
                self._loss = _reason(request) or self._loss
                self._advance(request)

    def _advance(self, event: Event) -> None:
        before, now = self._election, self._clock()
        after = self._election = state.advance(before, event, Moment(now, self._config, self._jitter()))
        if isinstance(event, state.PlacesFull | state.SliceOver | state.TermMinted):
            # The session is of use; what goes wrong from now on is another trouble.
            self._last_trouble = ""
        if isinstance(event, state.Failed | state.NotHeld):
            self._loss = (
                event.reason
                if isinstance(event, state.Failed)
                else "the lock, or the latest term, is no longer this session's"
            )
        if before.term is not None and after.term is None:
            self._lost(before.term, late=now >= before.trusted_until, by_choice=not after.broken)
        elif after.term is not None and before.term is None:
            self._gained(after.term, after.trusted_until, now - after.since)
        elif after.term is not None:
            self._leadership.extend(after.trusted_until)
        # Last, since a log may be slow.
        if isinstance(event, state.Failed):
            self._report_trouble(event.reason)

    def _gained(self, term: Term, trusted_until: float, waited: float) -> None:
        self._logger.info(
            "pgleader: gained leadership (election %s, term %d) after %s",
            term.election,
            term.number,
            _duration(waited),
        )
        self._leadership.gain(term, trusted_until, "elected", self._open.is_quiet)

    def _lost(self, term: Term, *, late: bool, by_choice: bool) -> None:
        reason = "no renewal within the trust window" if late else self._loss
        self._leadership.lose(term, reason, by_choice=by_choice)
        self._logger.info("pgleader: lost leadership (election %s, term %d): %s", term.election, term.number, reason)

    def _carry_out(self, command: state.Command) -> Event:
        try:
            return self._attempt(command)
        except (Error, OSError, ServerUnsuitable) as error:
            return state.Failed(_first_line(error))

    def _attempt(self, command: state.Command) -> Event:  # noqa: PLR0911 - one return for each command
        match command:
            case state.Pause(until):
                return self._pause(until)
            case state.Connect():
                return self._connect()
            case state.TakePlace():
                place = self._open.take_place()
                return state.PlacesFull() if place is None else state.PlaceTaken(place)
            case state.AwaitLock():
                granted = self._open.await_lock(self._requests.pending)
                return state.LockGranted() if granted else state.SliceOver()
            case state.MintTerm(place):
                return self._mint(place)
            case state.Renew(term, trusted_until):
                trouble = self._trouble(term)
                if trouble is not None:
                    self._logger.error("pgleader: another node should lead: %s", trouble)
                    self._loss = trouble
                    return state.ResignAsked(COOL_DOWN, trouble)
                asked_at = self._clock()
                held = self._open.renew(term.backend_pid, trusted_until - asked_at)
                self._renewed(self._clock() - asked_at)
                return state.Renewed(asked_at) if held else state.NotHeld()
            case state.Release(broken):
                self._close(broken=broken)
                return state.Released()

    def _connect(self) -> Event:
        try:
            self._session = self._open_session(self._config, self._node)
        except (Error, OSError) as error:
            hint = (
                ""
                if isinstance(error, SessionShared)
                else " (trying again; is the server up, and the database URL right?)"
            )
            return state.Failed(_first_line(error) + hint)
        return state.Connected()

    @property
    def _open(self) -> LockSessionPort:
        assert self._session is not None
        return self._session

    def _mint(self, place: int) -> Event:
        asked_at = self._clock()
        try:
            minted = self._open.mint_term(place)
        except HandedOn:
            return state.HandedOn()
        if minted is None:
            return state.NotHeld()
        number, backend_pid = minted
        return state.TermMinted(Term(number, self._config.election, self._node, backend_pid), asked_at)

    def _pause(self, until: float) -> Event:
        session = self._session
        # Whoever ends the session says so before the lock is free for others: a leader hears of it in time.
        socket_of_session = session.fileno() if session is not None else None
        while (left := until - self._clock()) > 0:
            self._requests.wait(min(left, LONGEST_PAUSE), socket_of_session)
            request = self._requests.take()
            if request is not None:
                self._loss = _reason(request) or self._loss
                return request
            if session is not None:
                session.check()
        return state.Elapsed()

    def _close(self, *, broken: bool) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        if not broken:
            # Those who act for the leader end what they are in the middle of before anybody else may begin.
            self._leadership.settle(self._config.renew_interval)
            session.release(self._loss)
        session.close()

    def _report_trouble(self, reason: str) -> None:
        # An outage is one line, not one for each attempt.
        level = logging.DEBUG if reason == self._last_trouble else logging.WARNING
        self._last_trouble = reason
        self._logger.log(
            level,
            "pgleader: no session with %s (election %s): %s",
            self._config.database,
            self._config.election,
            reason,
        )


def _reason(request: state.Request) -> str:
    match request:
        case state.ResignAsked(_, reason):
            return reason
        case state.CampaignAsked():
            return ""
        case state.RetireAsked() | state.StopAsked():
            return "stopped"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min"  # noqa: PLR2004 - ten minutes
