"""Three candidates of one process that lead in turn, and what it has: see `tests/integration/test_resources.py`.

`python -m tests.support.trio DATABASE BROKER FOLDER CHANGES LOOKS` writes what it has as a line of JSON, LOOKS times.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from collections import Counter
from pathlib import Path

import psutil
import psycopg
from celery import Celery

from celery_pgleader.config import Config
from celery_pgleader.worker.candidate import Candidate
from tests.support.eventually import eventually

PATIENCE = 60.0
# Those of the leader, and of its followers.
ALL_UP = Counter(["leader", "ledger", "listener", "relay", "steward", "follower", "follower"])
SESSIONS = """
select split_part(application_name, ' ', 2) from pg_stat_activity
 where datname = current_database() and application_name like 'pgleader %'
"""


class Trio:
    """Three candidates of one process, all that a worker has of the election, and what they have at a time."""

    def __init__(self, database: str, broker: str, folder: Path) -> None:
        """Start them."""
        self._observer = psycopg.connect(database, autocommit=True)
        channels = {"orders": "shop.on_order"}
        config = Config(database_url=database, election="shop", ttl=5, poll_interval=0.05, channels=channels)  # type: ignore[arg-type]  # as in an app's configuration
        self._apps = [Celery("shop", broker=broker, set_as_current=False) for _ in range(3)]
        self._candidates = []
        for number, app in enumerate(self._apps):
            app.task(name="shop.on_order", shared=False)(print)
            app.conf.beat_schedule = {"tick": {"task": "shop.on_order", "schedule": 0.05}}
            file = folder / f"schedule{number}"
            self._candidates.append(
                Candidate(app, f"node{number}", config, "celery.beat:PersistentScheduler", str(file))
            )
        for candidate in self._candidates:
            candidate.start()

    def change(self) -> None:
        """Have the lead change."""
        eventually(self._leader, timeout=PATIENCE)
        leader = self._leader()
        if leader is not None:
            leader.elector.resign(stand_back=0)
            eventually(lambda: self._leader() is not leader, timeout=PATIENCE)

    def _leader(self) -> Candidate | None:
        return next((c for c in self._candidates if c.leadership.trusted()), None)

    def sessions(self) -> Counter[str]:
        """Return the sessions with Postgres, by what they are for."""
        return Counter(name for (name,) in self._observer.execute(SESSIONS))

    def _are_up(self) -> bool:
        assert self.sessions() == ALL_UP
        return True

    def holds(self) -> dict[str, int]:
        """Return what the process has, while one leads and all of it is up."""
        eventually(self._are_up, timeout=PATIENCE)
        ((locks,),) = self._observer.execute(
            "select count(*) from pg_locks where locktype = 'advisory' and granted"
        ).fetchall()
        gc.collect()
        return {
            "threads": threading.active_count(),
            "files": len(list(Path("/proc/self/fd").iterdir())),
            "locks": locks,
            "objects": len(gc.get_objects()),
            "kilobytes": psutil.Process().memory_info().rss // 1024,
        }

    def stop(self) -> None:
        """Stop them."""
        for candidate in self._candidates:
            candidate.stop(PATIENCE)
        for app in self._apps:
            app.close()
        eventually(lambda: not self.sessions(), timeout=PATIENCE)
        self._observer.close()


def main(database: str, broker: str, folder: str, changes: str, looks: str) -> None:
    """Have the lead change so many times."""
    trio = Trio(database, broker, Path(folder))
    for number in range(1, int(changes) + 1):
        trio.change()
        if number % (int(changes) // int(looks)) == 0:
            print(json.dumps(trio.holds()), flush=True)
    trio.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
