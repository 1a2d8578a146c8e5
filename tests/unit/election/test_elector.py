"""What the elector does with a session that misbehaves as no server would."""

from __future__ import annotations

import socket
import threading

import pytest

from celery_pgleader.config import Config
from celery_pgleader.election import Change, Elector
from celery_pgleader.election.state import Phase
from tests.support.eventually import eventually

PATIENCE = 30.0
# Nothing is renewed, and no trust runs out, while a test lasts.
CONFIG = Config(database_url="host=nowhere", ttl=600, renew_interval=300)


class Session:
    """Wins at once; fails in a way that nobody has foreseen once its socket becomes readable."""

    def __init__(self) -> None:
        """Be open."""
        self.ours, self.theirs = socket.socketpair()
        self.closed = threading.Event()
        self.released = threading.Event()
        self.minted: tuple[int, int] | None = (7, 11)

    def fileno(self) -> int:
        """Return the socket."""
        return self.ours.fileno()

    def take_place(self) -> int:
        """Take the first place."""
        return 1

    def await_lock(self, _interrupted: object) -> bool:
        """Get the lock."""
        return True

    def mint_term(self, _place: int) -> tuple[int, int] | None:
        """Mint what the test says."""
        return self.minted

    def renew(self, _backend_pid: int, _seconds: float) -> bool:
        """Fail: no test is to last that long."""
        raise AssertionError

    def is_quiet(self) -> bool:
        """Say that nothing was heard."""
        return True

    def release(self, _reason: str) -> None:
        """Let go of the lock."""
        self.released.set()

    def check(self) -> None:
        """Fail."""
        raise RuntimeError("a bug")

    def close(self) -> None:
        """Be closed."""
        self.ours.close()
        self.theirs.close()
        self.closed.set()


def elector_with(*sessions: Session) -> tuple[Elector, list[Change]]:
    """Return an elector that gets these sessions, one after the other, and the changes that it tells."""
    left = iter(sessions)
    changes: list[Change] = []
    elector = Elector(CONFIG, "node", open_session=lambda *_: next(left))
    elector.leadership.subscribe(changes.append)
    return elector, changes


def test_bug_ends_leadership_and_frees_the_lock(caplog: pytest.LogCaptureFixture) -> None:
    """Everybody who acts for the leader hears of it, and no other node has to wait for the ttl."""
    session = Session()
    elector, changes = elector_with(session)
    elector.start()
    assert elector.leadership.wait(PATIENCE)
    session.theirs.send(b"!")
    assert session.closed.wait(PATIENCE)
    assert elector.stop(PATIENCE)
    assert [(change.gained, change.reason) for change in changes] == [(True, "elected"), (False, "the elector failed")]
    assert "this node no longer stands" in caplog.text


def test_session_that_does_not_hold_the_lock_mints_no_term() -> None:
    """Its name says that it leads, `pg_locks` says no: it is given up for another."""
    liar, honest = Session(), Session()
    liar.minted = None
    elector, changes = elector_with(liar, honest)
    elector.start()
    assert elector.leadership.wait(PATIENCE)
    assert liar.closed.is_set()
    assert len(changes) == 1
    honest.theirs.send(b"!")
    assert honest.closed.wait(PATIENCE)
    assert elector.stop(PATIENCE)
    assert elector.phase is Phase.STOPPED


def test_lock_is_kept_until_nobody_acts_for_the_leader() -> None:
    """What the old leader is in the middle of ends before another node may begin."""
    session = Session()
    elector, changes = elector_with(session)
    elector.start()
    assert elector.leadership.wait(PATIENCE)
    with elector.leadership.acting():
        elector.leave()
        eventually(lambda: len(changes) == 2, timeout=PATIENCE)
        assert not session.released.is_set()
    assert session.released.wait(PATIENCE)
    assert elector.stop(PATIENCE)
