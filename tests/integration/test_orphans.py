"""Who of the earlier leaders is still there, as their sessions with a real Postgres tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from celery import Celery

from celery_pgleader.config import Config
from celery_pgleader.election import Leadership, Term
from celery_pgleader.postgres import open_session
from celery_pgleader.tasks.leader_queue import LeaderQueue
from celery_pgleader.tasks.orphans import Orphans
from celery_pgleader.tasks.turn import TurnLock
from tests.support.eventually import eventually

PATIENCE = 60.0
NOW = Term(2, "shop", "celery@b", 2)


@pytest.fixture
def root(database: str) -> Iterator[psycopg.Connection[Any]]:
    """Give a connection to a database in which celery@a has led, and then celery@b."""
    with open_session(database, "test", unresponsive_after=5) as session:
        session.execute(
            "insert into pgleader.terms (election, term, node, backend_pid)"
            " values ('shop', 1, 'celery@a', 1), ('shop', 2, 'celery@b', 2)"
        )
        yield session


@pytest.mark.usefixtures("root")
def test_node_whose_runs_go_on_is_no_orphan(database: str) -> None:
    """Its session in the election may have been ended, and its main loop be busy with the run."""
    config = Config(database_url=database, election="shop")
    orphans = Orphans(Celery("shop", broker="memory://"), config, LeaderQueue("leader-shop", Leadership()))

    def look() -> tuple[list[str], list[str]]:
        return orphans._look(NOW)  # noqa: SLF001 - what it then asks them is tested with workers

    turn = TurnLock(config, "celery@a")
    assert look() == (["celery@a"], [])
    assert turn.hold()
    assert look() == (["celery@a"], ["celery@a"])
    turn.close()
    eventually(lambda: look() == (["celery@a"], []), timeout=PATIENCE)
