"""A scheduler that is bound to a term does nothing outside of it."""

from __future__ import annotations

import shelve
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.beat import PersistentScheduler, Scheduler

from celery_pgleader.beat import LeaderBeat
from celery_pgleader.beat.scheduler import TermOver, bind
from celery_pgleader.election import Leadership, Term

TERM = Term(7, "shop", "a", 11)


@pytest.fixture
def app() -> Celery:
    """Give an app whose only entry is always due."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {"tick": {"task": "shop.tick", "schedule": timedelta(0)}}
    return app


def sent(app: Celery) -> int:
    """Return how many messages are in the queue."""
    with app.connection_for_read() as connection, connection.SimpleQueue("celery") as queue:
        return len(queue)


def test_it_sends_while_it_may(app: Celery) -> None:
    """As the class that it is made of would."""
    scheduler = bind(Scheduler, lambda: True)(app=app)
    assert scheduler.tick() == 0
    assert sent(app) == 1
    assert type(scheduler).__name__ == "TermScheduler"
    scheduler.close()


def test_it_neither_sends_nor_reserves_when_it_may_not(app: Celery) -> None:
    """And says so with what no scheduler swallows."""
    scheduler = bind(Scheduler, lambda: False)(app=app)
    before = scheduler.schedule["tick"].total_run_count
    with pytest.raises(TermOver):
        scheduler.tick()
    assert scheduler.schedule["tick"].total_run_count == before
    with pytest.raises(TermOver):
        scheduler.apply_async(scheduler.schedule["tick"])
    assert not issubclass(TermOver, Exception)
    scheduler.close()


def test_it_does_not_overwrite_the_next_leaders_state(app: Celery, tmp_path: Path) -> None:
    """Neither by `sync` nor by closing the file."""
    may = True
    file = str(tmp_path / "schedule")
    scheduler: Any = bind(PersistentScheduler, lambda: may)(app=app, schedule_filename=file)
    scheduler.tick()
    scheduler.sync()
    may = False
    scheduler.schedule["tick"].total_run_count = 1000
    scheduler.sync()
    scheduler.close()
    with shelve.open(file) as written:
        assert written["entries"]["tick"].total_run_count == 1


def test_the_beat_ends_at_once(app: Celery, tmp_path: Path) -> None:
    """However long nothing is due, and with the file closed."""
    app.conf.beat_schedule = {"tick": {"task": "shop.tick", "schedule": timedelta(hours=1)}}
    leadership = Leadership()
    leadership.gain(TERM, float("inf"), "elected")
    beat = LeaderBeat(app, "celery.beat:PersistentScheduler", str(tmp_path / "schedule"), leadership)
    ended = threading.Event()
    thread = threading.Thread(target=beat.run, args=[TERM, ended])
    thread.start()
    ended.set()
    thread.join(10)
    assert not thread.is_alive()
    assert leadership.settle(0)


def test_the_beat_does_not_begin_in_a_term_that_is_over(app: Celery, tmp_path: Path) -> None:
    """A late start of one term must not run in the next."""
    leadership = Leadership()
    leadership.gain(Term(8, "shop", "a", 12), float("inf"), "elected")
    LeaderBeat(app, "celery.beat:PersistentScheduler", str(tmp_path / "schedule"), leadership).run(
        TERM, threading.Event()
    )
    assert not list(tmp_path.iterdir())
