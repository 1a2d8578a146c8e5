"""How every session with Postgres is opened, bounded and kept out of forked children."""

from __future__ import annotations

# The module behind `socket`: green threads replace the sockets of that, and those wait in ways of their own.
import _socket
import os
import selectors
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import waiting
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from celery_pgleader.threads import Doorbell

Error = psycopg.Error

CONNECT_TIMEOUT = 5
CANCEL_TIMEOUT = 1.0
GLANCE = 0.1
# What a message begins with in which the server says that something went wrong, such as that it ends the session.
ERROR_RESPONSE = b"E"
# How often a pooler is given the occasion to mix sessions up, by so many statements in a row and then by another
# connection; and seconds for which that may wait for a session.
PROBES, PROBE_STATEMENTS = 4, 5
PROBE_PATIENCE = 1.0

_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


class DeadlinePassed(psycopg.OperationalError):
    """The server did not answer in time."""


class SessionShared(psycopg.OperationalError):
    """A pooler gives each transaction to whichever session is free, so nothing that a session holds can be held."""


def _never() -> bool:
    return False


class Session(psycopg.Connection[Any]):
    """A psycopg connection in autocommit mode, whose waits for the server can be bounded and cut short."""

    _ended = False
    _line: _socket.socket | None = None
    _deadline: float | None = None
    _interrupted: Callable[[], bool] = staticmethod(_never)

    def wait(self, gen: Any, interval: float = GLANCE, timeout: float | None = None) -> Any:
        """Wait for the server as psycopg does, but keep to the bounds of `bounded`."""
        # Of psycopg's ways to wait, this one looks up in all its versions, and it knows green threads: the default one
        # is in C, blocks eventlet's hub and, before 3.3, never asks a generator while there is nothing to read.
        options = {} if timeout is None else {"timeout": timeout}
        return waiting.wait_selector(self._watched(gen), self.pgconn.socket, interval, **options)

    @contextmanager
    def bounded(self, seconds: float, interrupted: Callable[[], bool] = _never) -> Iterator[None]:
        """Bound what is run inside the block.

        Args:
            seconds: after these without an answer `DeadlinePassed` is raised. The session is then of no use
                but to be closed, since the statement may still be under way.
            interrupted: asked about ten times a second while nothing comes; once it says yes, the statement is
                cancelled. What it raises is raised, and the session is then of no use either.

        """
        self._deadline, self._interrupted = time.monotonic() + seconds, interrupted
        try:
            yield
        finally:
            self._deadline, self._interrupted = None, _never

    def is_alive(self) -> bool:
        """Tell whether the server still holds the other end, as far as can be seen without asking it."""
        if self.closed:
            return False
        try:
            while not self._ended and _is_readable(self.fileno()):
                self.pgconn.consume_input()
                # Has libpq look at what came.
                self.pgconn.is_busy()
        except psycopg.Error:
            return False
        return not self._ended

    def hear(self, seconds: float, bell: Doorbell) -> list[psycopg.Notify]:
        """Return the notifications that have come, or come first; none after `seconds`, or when the bell rings."""
        heard = list(self.notifies(timeout=0))
        if not heard:
            bell.wait(seconds, self.fileno())
            heard = list(self.notifies(timeout=0))
        return heard

    def open_line(self) -> None:
        """Have `is_quiet` look at the connection."""
        # A socket of our own for it: libpq's may be closed, and its number be used again, at any moment.
        self._line = _socket.socket(fileno=os.dup(self.fileno()))
        self._line.settimeout(0)

    def is_quiet(self, *, asked: bool = False) -> bool:
        """Tell whether the server has said nothing unasked. Never waits, and may be asked in any thread.

        Args:
            asked: whether an answer is being waited for, which may be there. An error is none.

        """
        line = self._line
        if line is None:
            return False
        try:
            first = line.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return asked and first not in {b"", ERROR_RESPONSE}

    def close(self) -> None:
        """End the session."""
        super().close()
        self.drop_line()

    def drop_line(self) -> None:
        """Let go of what `open_line` has opened."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def hear_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        """Take note of the server's farewell: it says why it ends a session before it frees the session's locks."""
        if notice.severity_nonlocalized in {"FATAL", "PANIC"}:
            self._ended = True

    def _watched(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        ready = None
        cancelled = False
        while True:
            try:
                wanted = gen.send(ready)
            except StopIteration as stop:
                return stop.value
            ready = yield wanted
            if self._deadline is not None and not ready and time.monotonic() >= self._deadline:
                raise DeadlinePassed("the server did not answer in time")
            if not ready and not cancelled and self._interrupted():
                cancelled = True
                with suppress(psycopg.Error):
                    self.cancel_safe(timeout=CANCEL_TIMEOUT)


def open_session(
    database_url: str, application_name: str, *, unresponsive_after: float, pooled: bool = False
) -> Session:
    """Open a session in autocommit mode.

    Args:
        database_url: libpq URL or keyword string; what it sets itself is left as it is.
        application_name: shown in `pg_stat_activity`.
        unresponsive_after: seconds after which the operating system may give up a connection whose other end
            acknowledges nothing.
        pooled: whether it would do if each statement were executed in another session.

    Raises:
        SessionShared: a pooler may do just that, and it would not do.
        psycopg.Error: no session could be had.

    """
    given = conninfo_to_dict(database_url)
    wanted: dict[str, str | int] = {
        "application_name": application_name,
        "client_encoding": "utf8",
        "connect_timeout": CONNECT_TIMEOUT,
        "tcp_user_timeout": round(unresponsive_after * 1000),
    }
    conninfo = make_conninfo(database_url, **{key: value for key, value in wanted.items() if key not in given})
    session = _connect(conninfo)
    if not pooled:
        try:
            # Before anything is set, since it would be set for others, too.
            _refuse_if_shared(session, conninfo)
        except BaseException:
            session.close()
            raise
    return session


def _connect(conninfo: str) -> Session:
    try:
        # No prepared statements, but where few of them are sent often: a plan for any values is the worse one for many
        # entries, and for those that are sent now and then there is nothing to be gained.
        session = Session.connect(conninfo, autocommit=True, prepare_threshold=None)
    except UnicodeError as error:
        raise psycopg.OperationalError(f"the host's name cannot be looked up: {error}") from None
    session.add_notice_handler(session.hear_notice)
    _sessions.add(session)
    return session


def _refuse_if_shared(session: Session, conninfo: str) -> None:
    if _is_shared(session, conninfo):
        raise SessionShared(
            "a pooler in transaction or statement mode is in between, and a session of one's own is needed:"
            " connect to Postgres directly, or through a pooler in session mode (PgBouncer: pool_mode = session)"
        )


def _is_shared(session: Session, conninfo: str) -> bool:
    """Tell whether another client was seen in a connection's session, or the connection in another session."""
    backend_pid = _backend_pid(session, CONNECT_TIMEOUT)
    # A server tells its own number when it is connected to, a pooler one that it has made up.
    if backend_pid == session.pgconn.backend_pid:
        return False
    # The same pooler, where several would do.
    info = session.info
    same = make_conninfo(conninfo, host=info.host, hostaddr=info.hostaddr, port=info.port)
    for _ in range(PROBES):
        # Some in a row, then in turn with another: whichever free session a pooler prefers, one of both shows it.
        if any(_backend_pid(session, CONNECT_TIMEOUT) != backend_pid for _ in range(PROBE_STATEMENTS)):
            return True
        try:
            with _connect(same) as other:
                if _backend_pid(other, PROBE_PATIENCE) == backend_pid:
                    return True
        except psycopg.Error:
            # All sessions are taken. If this one is shared after all, a renewal will find its lock in another.
            return False
    return False


def _backend_pid(session: Session, patience: float) -> int:
    with session.bounded(patience):
        row = session.execute("select pg_catalog.pg_backend_pid()").fetchone()
    assert row is not None
    pid: int = row[0]
    return pid


def _is_readable(fileno: int) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(fileno, selectors.EVENT_READ)
        return bool(selector.select(0))


def _close_inherited_sockets() -> None:
    # A forked pool child that kept the socket would keep the session, and so the lock, alive after its
    # parent was killed. psycopg itself never ends a session from a process that did not open it.
    for session in list(_sessions):
        with suppress(psycopg.Error, OSError):
            session.drop_line()
            os.close(session.fileno())
    _sessions.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_sockets)
