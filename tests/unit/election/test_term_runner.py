"""What runs for each term."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import pytest

from celery_pgleader.election import Leadership, Term, TermRunner

PATIENCE = 30.0
FIRST, SECOND = Term(1, "shop", "a", 11), Term(2, "shop", "a", 12)


@pytest.fixture
def leadership() -> Leadership:
    """Give the leadership of a node that follows."""
    return Leadership()


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


def test_runner_runs_once_in_each_term(leadership: Leadership, runner: TermRunner, runs: Runs) -> None:
    """From its beginning to its end."""
    runner.start()
    for number, term in enumerate((FIRST, SECOND), start=1):
        leadership.gain(term, math.inf, "elected")
        runs.await_counts(number, number - 1)
        leadership.lose(term, "resigned")
        runs.await_counts(number, number)
    assert runs.begun == [1, 2]


def test_runner_may_start_late_and_stop_early(leadership: Leadership, runner: TermRunner, runs: Runs) -> None:
    """In the middle of a term; starting and stopping twice is harmless, as is stopping first."""
    runner.stop()
    leadership.gain(FIRST, math.inf, "elected")
    runner.start()
    runner.start()
    runs.await_counts(1, 0)
    runner.stop(PATIENCE)
    runner.stop(PATIENCE)
    runs.await_counts(1, 1)
    runner.start()
    runs.await_counts(2, 1)
    assert (runs.begun, runs.ended) == ([1, 1], [1])


def test_failed_run_is_repeated_while_the_term_lasts(
    leadership: Leadership, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_pgleader.election.term_runner.RETRY_AFTER", 0.01)
    twice = threading.Semaphore(0)

    def fail(_term: Term, _ended: threading.Event) -> None:
        twice.release()
        raise RuntimeError("broken")

    runner = TermRunner(leadership, "test", fail)
    leadership.gain(FIRST, math.inf, "elected")
    runner.start()
    try:
        assert twice.acquire(timeout=PATIENCE)
        assert twice.acquire(timeout=PATIENCE)
        assert "the test failed in term 1" in caplog.text
    finally:
        runner.stop(PATIENCE)
