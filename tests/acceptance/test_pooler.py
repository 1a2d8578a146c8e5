"""Workers behind a PgBouncer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg

from celery_pgleader import notify
from tests.support.pgbouncer import PgBouncer
from tests.support.workers import Workers


def test_mistake_10_worker_behind_a_pooler_leads_in_session_mode_only(
    pooler: Callable[..., PgBouncer], database: str, valkey: str, tmp_path: Path
) -> None:
    """In transaction mode it works but does not stand, and says what to do, once."""
    bouncer = pooler("transaction")
    with Workers(tmp_path, database, valkey) as workers:
        workers.environment["PGLEADER_DATABASE_URL"] = bouncer.in_front_of(database)
        worker = workers.start("a")
        worker.await_line("through a pooler in session mode (PgBouncer: pool_mode = session)")
        workers.send("slow", 0)
        workers.await_fact("slow ended")
        log = worker.logged()
        assert log.count("pgleader: no session with") == 1
        assert "Traceback" not in log
        assert not workers.seats()
        bouncer.stop()
        bouncer.pool_mode = "session"
        bouncer.start()
        assert workers.await_leader() is worker
        workers.await_fact("tick", more_than=1)
        with psycopg.connect(database) as connection:
            notify("orders", {"id": 1}, connection=connection)
        assert workers.await_fact("order")["order"] == {"id": 1}
