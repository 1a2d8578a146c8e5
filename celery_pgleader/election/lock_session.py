"""The Postgres session that does nothing but the election."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import Error, OperationalError, sql

from celery_pgleader.config import Config
from celery_pgleader.election import sql as statements
from celery_pgleader.election.lock_key import KEPT_PLACE, PLACES, leader_key, place_key
from celery_pgleader.errors import ServerUnsuitable
from celery_pgleader.postgres import Session, open_session

OLDEST_VERSION = 140_000
MIN_SLICE, MAX_SLICE = 0.05, 0.9
APPLICATION_NAME_BYTES = 63
RELEASE_TIMEOUT = 1.0


class HandedOn(Exception):
    """This node was granted the lock, is not to lead now, and has given the lock and its place back."""


@dataclass(frozen=True)
class Standing:
    """Whether a node is to stand in line for the lock.

    Attributes:
        may_stand: it may.
        asked_for: it is asked for by name, and has a place kept.

    """

    may_stand: bool = True
    asked_for: bool = False


class Presence:
    """What a node says of itself whenever it asks for a place, and is told in return. This one says nothing."""

    def announce(self, _session: Session) -> Standing:
        """Tell that the node is here, through its session with the election's database."""
        return Standing()

    def parameters(self) -> Mapping[str, object]:
        """Return what the statement that mints a term asks of the node."""
        return {"may_lead": True, "entries": None}


@dataclass(frozen=True)
class TermBook:
    """Where terms are counted: the statements that mint, renew and end one.

    Attributes:
        mint: returns the new term and the backend's pid, or no row if the lock is not held; no term if this node is not
            to lead now, in which case the lock and the place are given back.
        renew: returns a row if the lock is held and the term is the latest.
        release: lets go of all locks.
        prepare: called with each new session; returns more parameters for these statements, and raises
            `ServerUnsuitable` if terms cannot be counted there.

    """

    mint: sql.SQL
    renew: str
    release: str
    prepare: Callable[[Session], Mapping[str, object]]


# Transaction numbers, for which no table is needed.
TRANSACTION_TERMS = TermBook(statements.MINT_TERM, statements.RENEW, statements.RELEASE, prepare=lambda _session: {})


class LockSession:
    """One session of one node, in which it waits for the election's lock, holds it and lets it go."""

    def __init__(
        self,
        config: Config,
        session: Session,
        node: str,
        terms: TermBook = TRANSACTION_TERMS,
        presence: Presence | None = None,
    ) -> None:
        """Take over an open session.

        Raises:
            ServerUnsuitable: the server cannot hold an election.
            psycopg.Error: the session failed.

        """
        self._config = config
        self._session = session
        self._node = node
        self._terms = terms
        self._presence = presence or Presence()
        self._term: int | None = None
        # Odd while the answer to a renewal is awaited.
        self._asked = 0
        self._key = leader_key(config)
        self._leading_name = session_name("leader", node)
        self._following_name = session_name("follower", node)
        # A follower that is not a successor is heard of once a poll interval.
        self._idle = _milliseconds(2 * config.poll_interval + config.ttl)
        self._slice = self._greet()
        self._prepared = terms.prepare(session)
        session.open_line()

    @classmethod
    def open(
        cls, config: Config, node: str, terms: TermBook = TRANSACTION_TERMS, presence: Presence | None = None
    ) -> LockSession:
        """Open a session.

        Raises:
            ServerUnsuitable: the server cannot hold an election.
            psycopg.Error: no session could be had.

        """
        name = session_name("follower", node)
        session = open_session(config.database_url, name, unresponsive_after=config.ttl)
        try:
            return cls(config, session, node, terms, presence)
        except BaseException:
            session.close()
            raise

    def fileno(self) -> int:
        """Return the session's socket, which becomes readable when the server ends the session."""
        return self._session.fileno()

    def check(self) -> None:
        """Raise `psycopg.OperationalError` if the server has ended the session, as far as can be seen here."""
        if not self._session.is_alive():
            raise OperationalError("the server has ended the session")

    def is_quiet(self) -> bool:
        """Tell whether the server has said nothing unasked. Waits for nothing, and may be asked in any thread.

        Before the server frees the lock of a session that it ends, it says so. Whoever leads by that lock can know of
        it, then, before anybody else can be granted it.
        """
        while True:
            asked = self._asked
            quiet = self._session.is_quiet(asked=asked % 2 == 1)
            # Otherwise a renewal has begun or ended meanwhile, and what was seen may be its answer.
            if quiet or asked == self._asked:
                return quiet

    def take_place(self) -> int | None:
        """Try to take one of the places; return which, or none if they are full or this node is not to stand."""
        first, second, kept = (place_key(self._config, place).as_arguments() for place in (*PLACES, KEPT_PLACE))
        query = statements.TAKE_PLACE.format(first=first, second=second, kept=kept)
        with self._session.bounded(self._config.ttl):
            standing = self._presence.announce(self._session)
            if not standing.may_stand:
                return None
            parameters = {"ttl_ms": _milliseconds(self._config.ttl), "asked_for": standing.asked_for}
            row = self._session.execute(query, parameters).fetchone()
            place: int | None = row[0] if row else None
            if place is not None:
                # Without the lock it does nothing; but the first time in a session it takes twice as long as later,
                # and when it is needed, nobody leads.
                self._mint(place)
        return place

    def await_lock(self, interrupted: Callable[[], bool]) -> bool:
        """Wait for the lock for one slice; tell whether it was granted.

        Args:
            interrupted: asked about ten times a second; once it says yes, the slice ends.

        """
        query = statements.AWAIT_LOCK.format(
            slice=sql.Literal(f"{_milliseconds(self._slice)}ms"),
            key=self._key.as_arguments(),
            name=sql.Literal(self._leading_name),
        )
        with self._session.bounded(self._slice + self._config.ttl, interrupted):
            self._session.execute(query)
        return self._session.info.parameter_status("application_name") == self._leading_name

    def mint_term(self, place: int) -> tuple[int, int] | None:
        """Return a new term and the backend's pid, or none if the lock is not held.

        Raises:
            HandedOn: it was held, and is given back, since this node is not to lead now.

        """
        with self._session.bounded(self._config.trust_window):
            row = self._mint(place)
        if not row:
            return None
        if row[0] is None:
            raise HandedOn
        self._term = row[0]
        return row[0], row[1]

    def _mint(self, place: int) -> Any:
        query = self._terms.mint.format(place=place_key(self._config, place).as_arguments())
        return self._session.execute(query, self._parameters()).fetchone()

    def renew(self, backend_pid: int, seconds: float) -> bool:
        """Tell whether the lock is still held, by this backend; raise `DeadlinePassed` after `seconds`."""
        self._asked += 1
        try:
            with self._session.bounded(seconds):
                cursor = self._session.execute(self._terms.renew, {"backend_pid": backend_pid, **self._parameters()})
                return cursor.fetchone() is not None
        finally:
            self._asked += 1

    def release(self, reason: str) -> None:
        """Let go of every lock at once, without waiting for the server to see that the session has ended."""
        with contextlib.suppress(Error), self._session.bounded(RELEASE_TIMEOUT):
            self._session.execute(self._terms.release, {"reason": reason, **self._parameters()})

    def close(self) -> None:
        """End the session."""
        self._session.close()

    def _greet(self) -> float:
        """Make the session fit for an election; return how many seconds a slice may last."""
        with self._session.bounded(self._config.ttl):
            row = self._session.execute(statements.GREET, {"idle_ms": self._idle}).fetchone()
        assert row is not None
        version, is_standby, deadlock_timeout = row[:3]
        if version < OLDEST_VERSION:
            raise ServerUnsuitable(f"PostgreSQL 14 or later is needed, this server is {version // 10_000}")
        if is_standby:
            raise ServerUnsuitable("this server is a standby; an election is held on the primary")
        return max(MIN_SLICE, min(MAX_SLICE, 0.9 * float(deadlock_timeout)))

    def _parameters(self) -> dict[str, object]:
        return {
            "classid": self._key.classid,
            "objid": self._key.objid,
            "objsubid": self._key.objsubid,
            "election": self._config.election,
            "node": self._node,
            "term": self._term,
            "follower": self._following_name,
            "idle_ms": self._idle,
            **self._presence.parameters(),
            **self._prepared,
        }


def session_name(purpose: str, node: str) -> str:
    """Return the `application_name` of a session, cut and cleaned as Postgres would do it."""
    name = f"pgleader {purpose} {node}"
    clean = "".join(c if " " <= c <= "~" else "?" for c in name)
    return clean[:APPLICATION_NAME_BYTES]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
