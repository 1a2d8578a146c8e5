"""Workers whose primary dies, and whose standby is promoted."""

from __future__ import annotations

from pathlib import Path

import psycopg

from celery_pgleader import notify
from example_app.servers import EmbeddedPostgres
from tests.support.eventually import eventually
from tests.support.standby import Standby, replicate_synchronously
from tests.support.workers import PATIENCE, Workers

SLOTS = "select slot, through, slots from pgleader.slots where entry = 'tick' order by slot"


def test_workers_follow_the_promoted_standby(
    own_postgres: EmbeddedPostgres, bin_dir: Path | None, valkey: str, tmp_path: Path
) -> None:
    """With several hosts in the URL: no slot is missing, no notification is lost, and no worker dies."""
    with Standby(own_postgres, bin_dir) as standby:
        replicate_synchronously(own_postgres)
        hosts = f"127.0.0.1:{own_postgres.port},127.0.0.1:{standby.port}"
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        with Workers(tmp_path, url, valkey) as workers:
            workers.start_all("ab")
            workers.await_fact("tick", more_than=1)
            for number in range(20):
                with psycopg.connect(url) as connection:
                    notify("orders", number, connection=connection)
            own_postgres.kill()
            standby.promote()
            before = len(workers.facts("tick"))
            workers.await_fact("tick", more_than=before + 2)
            eventually(lambda: {fact["order"] for fact in workers.facts("order")} == set(range(20)), timeout=PATIENCE)
            rows = workers.query(SLOTS)
            count = sum(slots for *_, slots in rows)
            assert (rows[-1][1] - rows[0][0]).total_seconds() == count - 1, rows
            terms = [fact["term"] for fact in workers.facts("gained")]
            assert terms == sorted(set(terms))
            assert all(worker.process.poll() is None for worker in workers.workers)
