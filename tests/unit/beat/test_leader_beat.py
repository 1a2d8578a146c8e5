"""The beat of a leader, over a broker and a ledger in memory."""

from __future__ import annotations

import logging
import shelve
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from celery.beat import PersistentScheduler, Scheduler

from celery_pgleader.beat import LeaderBeat, leader_beat
from celery_pgleader.beat.leader_beat import scheduler_class
from celery_pgleader.config import Config
from celery_pgleader.election import Leadership, Term
from celery_pgleader.errors import ConfigurationError
from celery_pgleader.slot import HEADER
from celery_pgleader.store import Claimed, Outcome, Superseded
from celery_pgleader.threads import Ending
from tests.support.eventually import eventually
from tests.support.memory import MemoryLedger

UTC = timezone.utc
TERM = Term(7, "shop", "a", 11)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
CONFIG = Config(database_url="host=nowhere", election="shop")


class Beat:
    """A beat of an app with a broker in memory, over a ledger in memory."""

    def __init__(self, tmp_path: Path) -> None:
        """Lead."""
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.app.conf.beat_schedule = {"tick": {"task": "shop.tick", "schedule": HOUR}}
        self.ledger = MemoryLedger()
        self.leadership = Leadership()
        self.leadership.gain(TERM, float("inf"), "elected")
        self.file = tmp_path / "schedule"
        self.ended = Ending()
        self.raised: list[BaseException] = []
        self.uptime = 0.0
        self.beat = LeaderBeat(
            self.app,
            "celery.beat:PersistentScheduler",
            str(self.file),
            CONFIG,
            self.leadership,
            clock=lambda: self.uptime,
        )
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.beat.run(TERM, self.ended)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.raised.append(error)

    def end(self) -> None:
        """End the term, and wait until the beat has ended."""
        self.ended.set()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def messages(self) -> list[Any]:
        """Take what is in the queue."""
        with self.app.connection_for_read() as connection, connection.SimpleQueue("celery") as queue:
            return [queue.get(block=False) for _ in range(len(queue))]


@pytest.fixture
def beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beat:
    """Give a beat that is yet to run, with short pauses."""
    made = Beat(tmp_path)
    made.messages()
    monkeypatch.setattr(leader_beat, "Ledger", lambda *_: made.ledger)
    monkeypatch.setattr(leader_beat, "LEDGER_RETRY", 0.001)
    return made


def test_beat_ends_at_once_with_its_term(beat: Beat) -> None:
    """However long nothing is due. The schedule file is written, the ledger closed."""
    beat.thread.start()
    eventually(lambda: "register" in beat.ledger.calls, timeout=30)
    beat.end()
    assert beat.leadership.settle(0)
    assert beat.ledger.closed
    with shelve.open(str(beat.file)) as written:
        assert "tick" in written["entries"]
    assert not beat.raised
    assert "pgleader-publisher" not in {thread.name for thread in threading.enumerate()}


def test_beat_started_late_does_not_run_in_the_next_term(beat: Beat) -> None:
    beat.leadership.gain(Term(8, "shop", "a", 12), float("inf"), "elected")
    beat.beat.run(TERM, Ending())
    assert not beat.file.parent.joinpath("schedule").exists()
    assert not beat.ledger.calls


def test_beat_does_not_begin_after_its_term_has_ended(beat: Beat) -> None:
    beat.ended.set()
    beat.beat.run(TERM, beat.ended)
    assert not beat.ledger.calls


def test_beat_first_publishes_slots_that_were_left_claimed(beat: Beat) -> None:
    """With the term of the claim in the header; a slot of a removed entry expires."""
    slot = datetime.now(UTC) - HOUR
    beat.ledger.unsettled = [Claimed("tick", slot, 6), Claimed("gone", slot, 6)]
    beat.thread.start()
    eventually(lambda: len(beat.ledger.outcomes) == 2, timeout=30)
    beat.end()
    assert set(beat.ledger.outcomes) == {
        Outcome("gone", slot, "expired", "the entry is gone"),
        Outcome("tick", slot, "published"),
    }
    (message,) = beat.messages()
    assert message.headers["task"] == "shop.tick"
    assert message.headers[HEADER]["term"] == 6
    assert message.headers[HEADER]["at"] == slot.isoformat()


def test_beat_sends_nothing_while_the_ledger_is_away(beat: Beat, caplog: pytest.LogCaptureFixture) -> None:
    """It asks again and again, and says so once; then it continues as if it had just begun."""
    caplog.set_level(logging.INFO)
    beat.ledger.error = psycopg.OperationalError("no route to host")
    beat.ledger.unsettled = [Claimed("tick", datetime.now(UTC), 6)]
    beat.thread.start()
    eventually(lambda: len(beat.ledger.calls) > 5, timeout=30)
    assert not beat.messages()
    beat.ledger.error = None
    eventually(lambda: beat.ledger.outcomes, timeout=30)
    beat.end()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["pgleader: the ledger cannot be asked, and nothing is sent until it can: no route to host"]
    assert len(beat.messages()) == 1
    assert not beat.raised


def test_beat_ends_without_error_when_the_ledger_refuses_its_term(beat: Beat) -> None:
    """Another node leads by then."""
    beat.ledger.error = Superseded()
    beat.thread.start()
    beat.thread.join(30)
    assert not beat.thread.is_alive()
    assert not beat.raised
    assert beat.ledger.closed


def test_error_of_a_scheduler_that_cannot_be_set_up_is_raised(beat: Beat) -> None:
    """The ledger is closed, and the term free to end."""
    beat.app.conf.beat_schedule = {"tick": {"task": "shop.tick", "schedule": HOUR, "no such": "field"}}
    with pytest.raises(TypeError):
        LeaderBeat(beat.app, Scheduler, "", CONFIG, beat.leadership).run(TERM, beat.ended)
    assert beat.ledger.closed
    assert beat.leadership.settle(0)


def test_beat_prunes_one_batch_in_each_idle_turn(beat: Beat) -> None:
    """Until there are none left; then not before a while."""
    batches = [5, 5, 0]
    pruned: list[int] = []

    def prune() -> int:
        pruned.append(batches.pop(0))
        return pruned[-1]

    beat.ledger.prune = prune  # type: ignore[method-assign]
    bell = threading.Event()
    term_beat = leader_beat.TermBeat(beat.app, CONFIG, TERM, lambda: True, bell)
    term_beat.start(Scheduler, "")
    for _ in range(6):
        assert term_beat.turn() > leader_beat.CHORE_TIME
    term_beat.stop()
    assert pruned == [5, 5, 0]


def test_beat_that_hangs_is_reported_as_trouble(beat: Beat) -> None:
    """Counted from when the term was first asked about."""
    assert beat.beat.trouble(TERM) is None
    beat.uptime = 30.0
    assert beat.beat.trouble(TERM) is None
    beat.uptime = 31.0
    assert beat.beat.trouble(TERM) == "the beat has not moved for 31 s"
    assert beat.beat.trouble(Term(8, "shop", "a", 12)) is None
    beat.uptime = 100.0
    beat.thread.start()
    eventually(lambda: beat.beat.trouble(TERM) is None, timeout=30)
    beat.end()


@pytest.mark.parametrize(("skew", "words"), [(90.04, "90.0 s ahead of"), (-1.5, "1.5 s behind"), (0.9, "")])
def test_wrong_clock_is_logged_at_the_beginning_of_a_term(
    beat: Beat, caplog: pytest.LogCaptureFixture, skew: float, words: str
) -> None:
    """Slots are due by this host's clock."""
    beat.ledger.clock_skew = skew
    beat.thread.start()
    eventually(lambda: "register" in beat.ledger.calls, timeout=30)
    beat.end()
    said = [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]
    assert len(said) == bool(words)
    assert words in " ".join(said)


def test_scheduler_is_found_by_class_dotted_name_or_alias() -> None:
    assert scheduler_class(Scheduler) is Scheduler
    assert scheduler_class("celery.beat:Scheduler") is Scheduler
    assert scheduler_class("celery.beat.PersistentScheduler") is PersistentScheduler
    assert scheduler_class("pgleader").__name__ == "PgLeaderScheduler"
    with pytest.raises(ConfigurationError, match=r"^beat_scheduler = 'nowhere:Scheduler': cannot be imported: "):
        scheduler_class("nowhere:Scheduler")
