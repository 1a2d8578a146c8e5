"""What everybody else knows of the election: the term, and whether it may be trusted now."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

logger = logging.getLogger(__name__)

Clock: TypeAlias = Callable[[], float]


@dataclass(frozen=True)
class Term:
    """One uninterrupted leadership.

    Attributes:
        number: higher than that of every earlier term of the election; also the fencing token.
        election: name of the election.
        node: who leads.
        backend_pid: the Postgres session that holds the lock.

    """

    number: int
    election: str
    node: str
    backend_pid: int


@dataclass(frozen=True)
class Change:
    """Leadership of a term was gained or lost.

    Attributes:
        term: the term.
        gained: whether it began, or ended.
        reason: why, in a few words.

    """

    term: Term
    gained: bool
    reason: str


class Leadership:
    """Whether this node leads, asked by all who act as the leader and told by the elector alone.

    Whoever acts as the leader asks `trusted` first, each time.
    """

    def __init__(
        self, clock: Clock = time.monotonic, tell: Callable[[int, float], object] = lambda _term, _until: None
    ) -> None:
        """Begin without leading.

        Args:
            clock: monotonic seconds; the trust window is measured by it.
            tell: called with the number of the term and the end of trust in it, whenever they change; with zeros once
                there is none.

        """
        self._clock = clock
        self._tell = tell
        # All of it changes together, and is read without a lock, even in a signal handler.
        self._held: tuple[Term, float, Callable[[], bool]] | None = None
        # The same of a term that was ended by choice, until its lock is let go.
        self._left: tuple[Term, float, Callable[[], bool]] | None = None
        self._changed = threading.Condition()
        self._acting = 0
        self._subscribers: list[Callable[[Change], None]] = []

    @property
    def term(self) -> Term | None:
        """The term that this node leads, or none if it does not or must not trust that it does."""
        held = self._held
        return held[0] if held is not None and self._clock() < held[1] and held[2]() else None

    def trusted(self, term: Term | None = None) -> bool:
        """Tell whether this node may act as the leader now, of `term` if that is given."""
        current = self.term
        return current is not None and term in {None, current}

    def holds(self, term: Term) -> bool:
        """Tell whether nobody else can lead yet: while the term is trusted, and then until `settle` has waited.

        Asked for what the next leader, or a beat, should find written down. Nothing new may be begun by it.
        """
        held = self._held or self._left
        return held is not None and held[0] == term and self._clock() < held[1] and held[2]()

    def wait(self, timeout: float | None = None) -> Term | None:
        """Wait until this node leads.

        Args:
            timeout: seconds after which to give up; none is for ever.

        Returns:
            The term, or none if the time was up.

        """
        with self._changed:
            self._changed.wait_for(lambda: self.term is not None, timeout)
            return self.term

    def subscribe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Call back for each change, in order, none left out.

        The callback runs in the elector's thread: it must return at once and leave work to another thread. If
        this node leads already, it is called for that first. An error that it raises is logged.

        Returns:
            A function that ends the subscription.

        """
        with self._changed:
            self._subscribers.append(callback)
            if self._held is not None:
                _call(callback, Change(self._held[0], gained=True, reason="led already"))

        def unsubscribe() -> None:
            with self._changed:
                if callback in self._subscribers:
                    self._subscribers.remove(callback)

        return unsubscribe

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Mark the block as acting for the leader: when it resigns, the lock is kept until the block has ended.

        Ask `trusted` inside of it, not before.
        """
        with self._changed:
            self._acting += 1
        try:
            yield
        finally:
            with self._changed:
                self._acting -= 1
                self._changed.notify_all()

    def settle(self, timeout: float) -> bool:
        """Wait until nobody acts for the leader; tell whether that came true within `timeout` seconds."""
        with self._changed:
            settled = self._changed.wait_for(lambda: not self._acting, timeout)
            self._left = None
            return settled

    def gain(self, term: Term, trusted_until: float, reason: str, is_quiet: Callable[[], bool] = lambda: True) -> None:
        """Begin a term.

        Args:
            term: the term.
            trusted_until: until when it may be trusted, unless it is extended.
            reason: why it was gained.
            is_quiet: asked with each question for trust; once it says no, the server may have ended the session.

        """
        self._announce((term, trusted_until, is_quiet), Change(term, gained=True, reason=reason))

    def extend(self, trusted_until: float) -> None:
        """Trust the present term for longer."""
        if self._held is not None:
            self._held = self._held[0], trusted_until, self._held[2]
            self._tell(self._held[0].number, trusted_until)

    def lose(self, term: Term, reason: str, *, by_choice: bool = False) -> None:
        """End a term, if it has not ended yet.

        Args:
            term: the term.
            reason: why.
            by_choice: the lock is still held, and kept until `settle` has waited.

        """
        if self._held is not None and self._held[0] == term:
            self._left = self._held if by_choice else None
            self._announce(None, Change(term, gained=False, reason=reason))

    def _announce(self, held: tuple[Term, float, Callable[[], bool]] | None, change: Change) -> None:
        with self._changed:
            self._held = held
            self._tell(*((held[0].number, held[1]) if held is not None else (0, 0.0)))
            self._changed.notify_all()
            for callback in tuple(self._subscribers):
                _call(callback, change)


def _call(callback: Callable[[Change], None], change: Change) -> None:
    try:
        callback(change)
    except Exception:
        logger.exception("pgleader: a subscriber failed at %s", change)
