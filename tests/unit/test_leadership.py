"""What followers of the leadership may rely on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from celery_pgleader.election import Change, Leadership, Term, TermRunner
from celery_pgleader.election.requests import Requests
from celery_pgleader.threads import Inbox

PATIENCE = 10.0
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
    """Nobody has to say so."""
    leadership.gain(FIRST, 104.5, "elected")
    clock.now = 104.4
    assert leadership.trusted()
    assert leadership.trusted(FIRST)
    assert leadership.term == FIRST
    clock.now = 104.5
    assert not leadership.trusted()
    assert leadership.term is None


def test_trust_is_of_a_term(leadership: Leadership) -> None:
    """What was begun in one term must not go on in the next."""
    leadership.gain(FIRST, 104.5, "elected")
    leadership.lose(FIRST, "resigned")
    leadership.gain(SECOND, 104.5, "elected")
    assert leadership.trusted(SECOND)
    assert not leadership.trusted(FIRST)


def test_an_old_term_cannot_be_lost_twice(leadership: Leadership) -> None:
    """Nor take the present one along."""
    leadership.gain(SECOND, 104.5, "elected")
    leadership.lose(FIRST, "late news")
    assert leadership.trusted(SECOND)


def test_trust_can_be_extended_while_it_lasts(leadership: Leadership, clock: Clock) -> None:
    """By renewals."""
    leadership.extend(200.0)
    assert not leadership.trusted()
    leadership.gain(FIRST, 104.5, "elected")
    leadership.extend(106.0)
    clock.now = 105.0
    assert leadership.trusted()


def test_subscribers_hear_every_change_in_order(leadership: Leadership) -> None:
    """Also one that comes late, and beside one that fails."""
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


def test_waiting_for_the_lead(leadership: Leadership) -> None:
    """Until it comes, or until the time is up."""
    assert leadership.wait(0) is None
    threading.Timer(0.01, leadership.gain, [FIRST, 104.5, "elected"]).start()
    assert leadership.wait(PATIENCE) == FIRST


def test_settling_waits_for_those_who_act(leadership: Leadership) -> None:
    """And no longer than it may."""
    assert leadership.settle(0)
    with leadership.acting():
        assert not leadership.settle(0)
    assert leadership.settle(0)


class Runs:
    """A function for a `TermRunner`, and its history."""

    def __init__(self) -> None:
        """Begin without a run."""
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.changed = threading.Condition()

    def __call__(self, term: Term, ended: threading.Event) -> None:
        """Run until the term ends."""
        self._note(self.begun, term)
        assert ended.wait(PATIENCE)
        self._note(self.ended, term)

    def await_counts(self, begun: int, ended: int) -> None:
        """Wait until so many runs began and ended."""
        with self.changed:
            assert self.changed.wait_for(lambda: (len(self.begun), len(self.ended)) == (begun, ended), PATIENCE)

    def _note(self, history: list[int], term: Term) -> None:
        with self.changed:
            history.append(term.number)
            self.changed.notify_all()


@pytest.fixture
def runs() -> Runs:
    """Give a function to run."""
    return Runs()


@pytest.fixture
def runner(leadership: Leadership, runs: Runs) -> Iterator[TermRunner]:
    """Give a runner that is stopped at the end."""
    runner = TermRunner(leadership, "test", runs)
    yield runner
    runner.stop(PATIENCE)


def test_a_runner_runs_once_a_term(leadership: Leadership, runner: TermRunner, runs: Runs) -> None:
    """From its beginning to its end, one term after the other."""
    runner.start()
    for number, term in enumerate((FIRST, SECOND), start=1):
        leadership.gain(term, 104.5, "elected")
        runs.await_counts(number, number - 1)
        leadership.lose(term, "resigned")
        runs.await_counts(number, number)
    assert runs.begun == [1, 2]


def test_a_runner_may_be_started_late_and_stopped_early(leadership: Leadership, runner: TermRunner, runs: Runs) -> None:
    """In the middle of a term; starting and stopping twice is harmless, as is stopping first."""
    runner.stop()
    leadership.gain(FIRST, 104.5, "elected")
    runner.start()
    runner.start()
    runs.await_counts(1, 0)
    runner.stop(PATIENCE)
    runner.stop(PATIENCE)
    runs.await_counts(1, 1)
    runner.start()
    runs.await_counts(2, 1)


def test_what_fails_is_run_again(
    leadership: Leadership, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the term lasts."""
    monkeypatch.setattr("celery_pgleader.election.term_runner.RETRY_AFTER", 0.01)
    twice = threading.Semaphore(0)

    def fail(_term: Term, _ended: threading.Event) -> None:
        twice.release()
        raise RuntimeError("broken")

    runner = TermRunner(leadership, "test", fail)
    leadership.gain(FIRST, 104.5, "elected")
    runner.start()
    try:
        assert twice.acquire(timeout=PATIENCE)
        assert twice.acquire(timeout=PATIENCE)
        assert "the test failed in term 1" in caplog.text
    finally:
        runner.stop(PATIENCE)


def test_an_inbox_keeps_order_and_survives_errors(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that is put into it ends it, not even nothing."""
    handled: list[object] = []

    def handle(item: object) -> None:
        if item == "bad":
            raise RuntimeError("broken")
        handled.append(item)

    inbox: Inbox[object] = Inbox("test", handle, logging.getLogger("test"))
    inbox.put(1)
    inbox.stop()
    inbox.start()
    inbox.start()
    for item in (None, "bad", 2):
        inbox.put(item)
    inbox.stop(PATIENCE)
    inbox.stop(PATIENCE)
    assert handled == [1, None, 2]
    assert "pgleader: test failed" in caplog.text


def test_a_request_wakes_who_waits() -> None:
    """And one that was made before is not waited for."""
    requests: Requests[str] = Requests()
    try:
        requests.put("early")
        requests.wait(PATIENCE)
        assert (requests.pending(), requests.take(), requests.take()) == (True, "early", None)
        threading.Timer(0.01, requests.put, ["late"]).start()
        requests.wait(PATIENCE)
        assert requests.take() == "late"
        for number in range(1000):
            requests.put(str(number))
        assert requests.take() == "0"
    finally:
        requests.close()
    requests.put("too late")
