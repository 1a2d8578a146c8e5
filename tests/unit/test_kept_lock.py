"""For how long the lock of a term counts as this node's, which is longer than the term may be trusted."""

from __future__ import annotations

from celery_pgleader.election import Leadership, Term

TERM, NEXT = Term(7, "shop", "a", 11), Term(8, "shop", "a", 12)


class Node:
    """A node that leads, and its clock."""

    def __init__(self) -> None:
        """Begin the term."""
        self.now = 0.0
        self.quiet = True
        self.leadership = Leadership(lambda: self.now)
        self.leadership.gain(TERM, 5.0, "elected", lambda: self.quiet)


def test_lock_is_held_while_the_term_is_trusted() -> None:
    """That term's, and no other's."""
    node = Node()
    assert node.leadership.holds(TERM)
    assert not node.leadership.holds(NEXT)
    node.now = 5.0
    assert not node.leadership.holds(TERM)


def test_lock_is_held_until_those_who_act_have_ended() -> None:
    """If the term was ended by choice; nobody may begin anything by it."""
    leadership = Node().leadership
    leadership.lose(TERM, "resigned", by_choice=True)
    assert leadership.holds(TERM)
    assert not leadership.trusted(TERM)
    leadership.settle(0)
    assert not leadership.holds(TERM)


def test_lock_is_held_no_longer_than_the_server_keeps_it() -> None:
    """It frees the lock of a session that is not renewed, or that it has ended."""
    node = Node()
    node.leadership.lose(TERM, "resigned", by_choice=True)
    node.quiet = False
    assert not node.leadership.holds(TERM)
    node.quiet = True
    assert node.leadership.holds(TERM)
    node.now = 5.0
    assert not node.leadership.holds(TERM)


def test_lock_that_was_lost_is_not_held() -> None:
    """Nor is that of a term before the present one."""
    leadership = Node().leadership
    leadership.lose(TERM, "lost")
    assert not leadership.holds(TERM)
    leadership.gain(TERM, 5.0, "elected")
    leadership.lose(TERM, "resigned", by_choice=True)
    leadership.gain(NEXT, 5.0, "elected")
    assert not leadership.holds(TERM)
