"""The primary dies and its standby is promoted: who leads, in which term, and what of the ledger is still there."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psycopg
import pytest

from celery_pgleader.config import Config
from celery_pgleader.election import Change, Elector, LockSession
from celery_pgleader.notifications.sending import notify
from celery_pgleader.postgres import open_session
from celery_pgleader.store import LEDGER_TERMS, EntryRecord, Ledger, SlotRow
from celery_pgleader.store.terms import TERMS_IN_A_TIMELINE
from example_app.servers import EmbeddedPostgres
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.standby import Standby, ask, replicate_synchronously

PATIENCE = 60.0
NOON = datetime(2026, 1, 15, 12, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)


class Fleet:
    """Electors that know both servers, and what was done while one of them led."""

    def __init__(self, stack: ExitStack, *servers: EmbeddedPostgres) -> None:
        """Begin without an elector."""
        self._stack = stack
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        self.url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        self.config = Config(database_url=self.url, renew_interval=0.4, poll_interval=0.5)
        self.electors: list[Elector] = []
        self.changes: list[Change] = []

    def add(self, node: str, config: Config | None = None) -> Elector:
        """Start an elector."""
        elector = Elector(config or self.config, node, open_session=lambda c, n: LockSession.open(c, n, LEDGER_TERMS))
        elector.leadership.subscribe(self.changes.append)
        elector.start()
        self._stack.callback(elector.stop, PATIENCE)
        self.electors.append(elector)
        return elector

    def await_leader(self) -> Elector:
        """Wait until somebody leads."""
        eventually(lambda: [one for one in self.electors if one.leadership.trusted()], timeout=PATIENCE)
        return next(one for one in self.electors if one.leadership.trusted())

    def lead(self) -> int:
        """Have the lead change once more; return the number of the new term."""
        before = self.await_leader()
        before.resign(stand_back=0.2)
        eventually(lambda: not before.leadership.trusted(), timeout=PATIENCE)
        term = self.await_leader().leadership.term
        assert term is not None
        return term.number

    def ledger(self) -> Ledger:
        """Return the ledger of whoever leads."""
        leader = self.await_leader()
        term = leader.leadership.term
        assert term is not None
        ledger = Ledger(self.config, term, lambda: leader.leadership.trusted(term))
        self._stack.callback(ledger.close)
        ledger.register({"tick": EntryRecord("shop.tick", "every 0:01:00", NOON, NOON)})
        return ledger

    def claim(self, minute: int) -> bool:
        """Claim a slot for whoever leads; tell whether that was granted."""
        slot = NOON + minute * MINUTE
        return bool(self.ledger().claim([SlotRow("tick", slot, slot, 1, "claimed", None, str(uuid.uuid4()))]))

    def send(self, number: int) -> None:
        """Send a durable notification."""
        with psycopg.connect(self.url) as connection:
            notify("orders", number, connection=connection)

    def waiting(self) -> list[int]:
        """Return the durable notifications that are there."""
        with psycopg.connect(self.url) as connection:
            return [n for (n,) in connection.execute("select payload from pgleader.notifications order by id")]

    def terms(self) -> list[int]:
        """Return the terms in the order in which they began."""
        return [change.term.number for change in self.changes if change.gained]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Give a place for all that is to be ended."""
    with ExitStack() as ended:
        yield ended


Follow = Callable[..., Standby]


@pytest.fixture
def follow(own_postgres: EmbeddedPostgres, bin_dir: Path) -> Iterator[Follow]:
    """Make a standby of the primary."""
    with ExitStack() as ended:
        yield lambda port=None: ended.enter_context(Standby(own_postgres, bin_dir, port))


def fail_over(fleet: Fleet, primary: EmbeddedPostgres, standby: Standby) -> None:
    """Kill the primary; nobody leads before the standby is promoted, somebody does afterwards."""
    before = len(fleet.terms())
    primary.kill()
    eventually(lambda: not [one for one in fleet.electors if one.leadership.term], timeout=PATIENCE)
    tried = {one: one._candidacy._election.failures for one in fleet.electors}  # type: ignore[union-attr]  # noqa: SLF001
    eventually(
        lambda: all(one._candidacy._election.failures > tried[one] + 1 for one in fleet.electors),  # type: ignore[union-attr]  # noqa: SLF001
        timeout=PATIENCE,
    )
    assert len(fleet.terms()) == before
    standby.promote()
    fleet.await_leader()


def test_no_node_is_elected_on_a_standby(
    own_postgres: EmbeddedPostgres, follow: Follow, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """Though it could be connected to; when it is promoted, somebody is."""
    standby = follow()
    alone = Fleet(stack, standby)
    elector = alone.add("a", Config(database_url=standby.url(), ttl=2))
    eventually(lambda: elector._candidacy._election.failures >= 3, timeout=PATIENCE)  # type: ignore[union-attr]  # noqa: SLF001
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.endswith("): this server is a standby; an election is held on the primary")
    assert not alone.changes
    own_postgres.kill()
    standby.promote()
    alone.await_leader()


def test_synchronous_standby_loses_nothing(own_postgres: EmbeddedPostgres, follow: Follow, stack: ExitStack) -> None:
    """Terms rise, what was claimed cannot be claimed again, and every notification is there."""
    standby = follow()
    replicate_synchronously(own_postgres)
    fleet = Fleet(stack, own_postgres, standby)
    for node in "abc":
        fleet.add(node)
    fleet.await_leader()
    for number in range(1, 11):
        if number % 3 == 0:
            fleet.lead()
        assert fleet.claim(number)
        fleet.send(number)
    fail_over(fleet, own_postgres, standby)
    assert not fleet.claim(10)
    assert len(fleet.ledger().claimed()) == 10
    assert fleet.claim(11)
    assert fleet.waiting() == list(range(1, 11))
    assert fleet.terms() == sorted(set(fleet.terms()))
    history = ask(standby, "select string_agg(term::text, ',' order by term) from pgleader.terms")
    assert history == ",".join(str(term) for term in fleet.terms())


def test_asynchronous_standby_loses_only_what_it_had_not_received(
    own_postgres: EmbeddedPostgres, follow: Follow, stack: ExitStack
) -> None:
    """Its last claims and notifications are gone, and slots can be claimed again. Terms rise all the same."""
    link = Proxy(own_postgres.port)
    stack.callback(link.close)
    standby = follow(link.port)
    fleet = Fleet(stack, own_postgres, standby)
    for node in "abc":
        fleet.add(node)
    fleet.await_leader()
    assert fleet.claim(1)
    fleet.send(1)
    position = ask(own_postgres, "select pg_current_wal_lsn()")
    eventually(lambda: ask(standby, f"select pg_last_wal_replay_lsn() >= '{position}'") == "True", timeout=PATIENCE)
    link.deaf()
    for _ in range(3):
        fleet.lead()
    assert fleet.claim(2)
    fleet.send(2)
    lost = fleet.terms()
    assert lost == [1, 2, 3, 4]
    link.close()
    fail_over(fleet, own_postgres, standby)
    assert fleet.waiting() == [1]
    assert not fleet.claim(1)
    assert fleet.claim(2)
    assert fleet.terms()[: len(lost)] == lost
    assert fleet.terms() == sorted(set(fleet.terms()))
    assert fleet.terms()[len(lost)] == TERMS_IN_A_TIMELINE
    # From there on they are counted by one.
    assert fleet.lead() == fleet.terms()[-2] + 1


def test_terms_rise_without_rights_to_the_log_position(database: str) -> None:
    """By what is stored."""
    with psycopg.connect(database, autocommit=True) as root:
        root.execute("revoke execute on function pg_walfile_name(pg_lsn) from public")
        role = f"plain_{uuid.uuid4().hex[:8]}"
        root.execute(f"create role {role} login".encode())
        LockSession.open(Config(database_url=database), "root", LEDGER_TERMS).close()
        root.execute(f"grant usage on schema pgleader to {role}".encode())
        root.execute(f"grant select, insert, update, delete on all tables in schema pgleader to {role}".encode())
        config = Config(database_url=psycopg.conninfo.make_conninfo(database, user=role))
        for number in (1, 2):
            lock = LockSession.open(config, "plain", LEDGER_TERMS)
            place = lock.take_place()
            assert place is not None
            assert lock.await_lock(lambda: False)
            minted = lock.mint_term(place)
            assert minted is not None
            assert minted[0] == number
            lock.release("resigned")
            lock.close()
        with open_session(database, "test", unresponsive_after=5) as session:
            session.execute(f"drop owned by {role}".encode())
            session.execute(f"drop role {role}".encode())
