"""A dashboard in a process of its own, and who leads in the election that it shows."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psycopg

from celery_pgleader.config import Config
from celery_pgleader.election import Term
from celery_pgleader.election.lock_session import LockSession
from celery_pgleader.store import LEDGER_TERMS
from celery_pgleader.store.presence import Abilities, NodePresence
from tests.support.eventually import eventually
from tests.support.programs import Program
from tests.support.workers import PATIENCE

TOKEN = "a token of this test alone"


class Dashboard(Program):
    """A dashboard that listens on a free port."""

    def __init__(self, app: str, environment: Mapping[str, str], folder: Path, *options: str) -> None:
        """Start it, and wait until it listens."""
        words = f"-m celery -A {app} pgleader dashboard --bind 127.0.0.1:0".split()
        super().__init__("dashboard", [sys.executable, *words, *options], environment, folder)
        self.await_line(" shows election ")
        found = re.search(r"http://\S+/", self.logged())
        assert found is not None
        self.url = found[0]

    def ask(
        self, path: str, form: Mapping[str, str] | None = None, cookie: str = "", **headers: str
    ) -> tuple[HTTPResponse, str]:
        """Return the answer to a request, with its text."""
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE)
        try:
            sent = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"} | headers
            connection.request("GET" if form is None else "POST", path, urlencode(form or {}), sent)
            response = connection.getresponse()
            return response, response.read().decode()
        finally:
            connection.close()

    def get(self, path: str) -> str:
        """Return what is found at a path."""
        response, text = self.ask(path)
        assert response.status == 200, text
        return text


@contextmanager
def serving(app: str, environment: Mapping[str, str], folder: Path, *options: str) -> Iterator[Dashboard]:
    """Give a dashboard, which has nothing to complain of."""
    dashboard = Dashboard(app, environment, folder, *options)
    try:
        yield dashboard
        # In good order, as an init system would.
        dashboard.send(signal.SIGTERM)
        dashboard.await_end()
        assert "Traceback" not in dashboard.logged(), dashboard.logged()
    finally:
        dashboard.end()


class Leading:
    """Sessions that lead an election, and wait in its line, without any worker."""

    def __init__(self, database: str, stack: ExitStack, election: str) -> None:
        """Begin."""
        self.config = Config(database_url=database, election=election, ttl=60)
        self._stack = stack

    def lead(self, node: str) -> tuple[LockSession, Term]:
        """Have a node elected."""
        session, place = self.follow(node)
        assert place is not None
        eventually(lambda: session.await_lock(lambda: False))
        minted = session.mint_term(place)
        assert minted is not None
        return session, Term(minted[0], self.config.election, node, minted[1])

    def follow(self, node: str) -> tuple[LockSession, int | None]:
        """Have a node take a place in the line."""
        presence = NodePresence(self.config, node, Abilities(("report",), "5c2bde8b"))
        session = LockSession.open(self.config, node, LEDGER_TERMS, presence)
        self._stack.callback(session.close)
        return session, session.take_place()


def execute(database: str, *statements: str) -> None:
    """Change something in a database."""
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


# A thousand entries and a million of their slots: one each minute, up to now. Nothing of it is counted.
MANY = (
    """
insert into pgleader.entries (election, entry, task, schedule, anchor, since, last_slot, next_slot)
select 'shop', 'entry ' || e, 'proj.tick', 'every 0:01:00', now() - interval '1 day', now() - interval '1 day',
       date_trunc('minute', now()), now() + interval '1 hour'
  from generate_series(1, 1000) e
""",
    "alter table pgleader.slots disable trigger user",
    """
insert into pgleader.slots (election, entry, slot, through, state, reason, term, claimed_at, settled_at)
select 'shop', 'entry ' || e, at.slot, at.slot, at.state, case when at.state = 'skipped' then 'paused' end, 1,
       at.slot, at.slot + interval '12 ms'
  from (select date_trunc('minute', now()) - make_interval(mins => s) as slot,
               case when s % 50 = 7 then 'skipped' else 'published' end as state
          from generate_series(0, 999) s) at,
       generate_series(1, 1000) e
""",
    "alter table pgleader.slots enable trigger user",
    "vacuum analyze pgleader.slots",
    "vacuum analyze pgleader.entries",
)
# Two hundred nodes, which are there for as long as the leader's session is.
MANY_NODES = """
insert into pgleader.nodes (election, node, instance, backend_pid, priority, entries, schedule, app_version,
                            package_version, clock_skew, started_at)
select 'shop', 'celery@host' || n, gen_random_uuid(), l.backend_pid, 1, '{}', '5c2bde8b', 'v1.8.2', '0.1.0', 0.01, now()
  from generate_series(1, 200) n, (select backend_pid from pgleader.terms where ended_at is null) l
"""
