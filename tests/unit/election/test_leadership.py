"""What followers of the leadership may rely on."""

from __future__ import annotations

import threading

import pytest

from celery_pgleader.election import Change, Leadership, Term

PATIENCE = 30.0
FIRST, SECOND = Term(1, "shop", "a", 11), Term(2, "shop", "a", 12)


class Clock:
    """Monotonic seconds that stand still."""

    def __init__(self) -> None:
        """Begin at a hundred."""
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Give a clock."""
    return Clock()


@pytest.fixture
def leadership(clock: Clock) -> Leadership:
    """Give the leadership of a node that follows."""
    return Leadership(clock)


def test_trust_ends_with_its_window(leadership: Leadership, clock: Clock) -> None:
    """Without being told to."""
    leadership.gain(FIRST, 104.5, "elected")
    clock.now = 104.4
    assert leadership.trusted()
    assert leadership.trusted(FIRST)
    assert leadership.term == FIRST
    clock.now = 104.5
    assert not leadership.trusted()
    assert leadership.term is None


def test_trust_in_one_term_does_not_hold_in_the_next(leadership: Leadership) -> None:
    leadership.gain(FIRST, 104.5, "elected")
    leadership.lose(FIRST, "resigned")
    leadership.gain(SECOND, 104.5, "elected")
    assert leadership.trusted(SECOND)
    assert not leadership.trusted(FIRST)


def test_late_loss_of_an_old_term_leaves_the_present_one(leadership: Leadership) -> None:
    leadership.gain(SECOND, 104.5, "elected")
    leadership.lose(FIRST, "late news")
    assert leadership.trusted(SECOND)


def test_renewal_extends_trust_only_during_a_term(leadership: Leadership, clock: Clock) -> None:
    leadership.extend(200.0)
    assert not leadership.trusted()
    leadership.gain(FIRST, 104.5, "elected")
    leadership.extend(106.0)
    clock.now = 105.0
    assert leadership.trusted()


def test_subscriber_hears_every_change_in_order(leadership: Leadership) -> None:
    """Also one that subscribes late, and beside one that fails."""
    heard: list[Change] = []

    def fail(_change: Change) -> None:
        raise RuntimeError("broken")

    leadership.subscribe(fail)
    unsubscribe = leadership.subscribe(heard.append)
    leadership.gain(FIRST, 104.5, "elected")
    late: list[Change] = []
    leadership.subscribe(late.append)
    leadership.lose(FIRST, "resigned")
    unsubscribe()
    leadership.gain(SECOND, 104.5, "elected")
    assert [(change.term, change.gained, change.reason) for change in heard] == [
        (FIRST, True, "elected"),
        (FIRST, False, "resigned"),
    ]
    assert [(change.term, change.gained) for change in late] == [(FIRST, True), (FIRST, False), (SECOND, True)]


def test_wait_returns_the_term_or_gives_up(leadership: Leadership) -> None:
    assert leadership.wait(0) is None
    threading.Timer(0.01, leadership.gain, [FIRST, 104.5, "elected"]).start()
    assert leadership.wait(PATIENCE) == FIRST


def test_settle_waits_until_nobody_acts(leadership: Leadership) -> None:
    """And no longer than it may."""
    assert leadership.settle(0)
    with leadership.acting():
        assert not leadership.settle(0)
    assert leadership.settle(0)


class Leader:
    """A node that leads for the first term, and its clock."""

    def __init__(self) -> None:
        """Begin the term."""
        self.now = 0.0
        self.quiet = True
        self.leadership = Leadership(lambda: self.now)
        self.leadership.gain(FIRST, 5.0, "elected", lambda: self.quiet)


def test_lock_is_held_while_the_term_is_trusted() -> None:
    """That term's, and no other's."""
    leader = Leader()
    assert leader.leadership.holds(FIRST)
    assert not leader.leadership.holds(SECOND)
    leader.now = 5.0
    assert not leader.leadership.holds(FIRST)


def test_lock_is_held_until_those_who_act_have_ended() -> None:
    """If the term was ended by choice; nobody may begin anything by it."""
    leadership = Leader().leadership
    leadership.lose(FIRST, "resigned", by_choice=True)
    assert leadership.holds(FIRST)
    assert not leadership.trusted(FIRST)
    leadership.settle(0)
    assert not leadership.holds(FIRST)


def test_lock_is_held_no_longer_than_the_server_keeps_it() -> None:
    """It frees the lock of a session that is not renewed, or that it has ended."""
    leader = Leader()
    leader.leadership.lose(FIRST, "resigned", by_choice=True)
    leader.quiet = False
    assert not leader.leadership.holds(FIRST)
    leader.quiet = True
    assert leader.leadership.holds(FIRST)
    leader.now = 5.0
    assert not leader.leadership.holds(FIRST)


def test_lock_that_was_lost_is_not_held() -> None:
    """Nor is that of a term before the present one."""
    leadership = Leader().leadership
    leadership.lose(FIRST, "lost")
    assert not leadership.holds(FIRST)
    leadership.gain(FIRST, 5.0, "elected")
    leadership.lose(FIRST, "resigned", by_choice=True)
    leadership.gain(SECOND, 5.0, "elected")
    assert not leadership.holds(FIRST)
