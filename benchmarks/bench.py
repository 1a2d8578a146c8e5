"""A leader in threads of this process, for what is measured without workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from celery import Celery

from celery_pgleader import Term
from celery_pgleader.channels import Route
from celery_pgleader.config import Config
from celery_pgleader.election import Leadership
from celery_pgleader.election.lock_session import LockSession
from celery_pgleader.notifications.relay import Relay
from celery_pgleader.postgres import open_session
from celery_pgleader.store import LEDGER_TERMS, Schema
from celery_pgleader.threads import Ending

PAYLOAD = {"id": 4711, "customer": "c-0815", "total": "129.90", "items": [{"sku": "tea-1", "count": 2}] * 3}
ROUTES = {"orders": (Route("bench.on_order"),)}
DURABLE = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "256MB"}


class Bench:
    """An app on a broker, and a leader in threads of this process."""

    def __init__(
        self,
        database: str,
        broker: str,
        routes: Mapping[str, tuple[Route, ...]] = ROUTES,
        transport_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a term."""
        self._routes = routes
        self.app = Celery("bench", broker=broker, set_as_current=False)
        self.app.conf.update(broker_transport_options=dict(transport_options or {}), task_ignore_result=True)

        @self.app.task(name="bench.on_order", shared=False)
        def on_order(order: object) -> None:
            """Handle an order."""

        self.task = on_order
        self.database = database
        self.config = Config(database_url=database, election="bench")
        session = LockSession.open(self.config, "a", LEDGER_TERMS)
        place = session.take_place()
        assert place is not None
        session.await_lock(lambda: False)
        minted = session.mint_term(place)
        assert minted is not None
        session.release("resigned")
        session.close()
        self.term = Term(minted[0], "bench", "a", minted[1])
        self.leadership = Leadership()
        self.leadership.gain(self.term, float("inf"), "elected")

    @contextmanager
    def running(self, run: Callable[[Term, Ending], None]) -> Iterator[None]:
        """Run a part of a leader."""
        ended = Ending()
        thread = threading.Thread(target=run, args=[self.term, ended], daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(30)

    def relay(self) -> Callable[[Term, Ending], None]:
        """Return what relays."""
        return Relay(self.app, self.config, self.leadership, self._routes).run

    def add_backlog(self, number: int, channel: str = "orders") -> None:
        """Have durable notifications wait."""
        with psycopg.connect(self.database) as connection:
            connection.execute(
                "insert into pgleader.notifications (channel, key, payload)"
                " select %s, (g %% 100)::text, %s::jsonb from generate_series(1, %s) g",
                [channel, json.dumps(PAYLOAD), number],
            )

    def await_no_backlog(self) -> None:
        """Wait until all have been dispatched."""
        never = threading.Event()
        with psycopg.connect(self.database, autocommit=True) as connection:
            while connection.execute("select 1 from pgleader.notifications limit 1").fetchone():
                never.wait(0.005)


def migrate(database: str) -> None:
    """Create the ledger."""
    with open_session(database, "bench", unresponsive_after=5) as session:
        Schema(session).migrate()
