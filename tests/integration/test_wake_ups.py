"""Wake-ups: sent only to a relay that sleeps, and nothing is overlooked by one that does."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import psycopg
import pytest
from celery import Celery

from celery_pgleader import Term
from celery_pgleader.channels import Route
from celery_pgleader.config import Config
from celery_pgleader.election import Leadership
from celery_pgleader.election.lock_session import LockSession
from celery_pgleader.notifications import relay as relay_module
from celery_pgleader.notifications.relay import Relay
from celery_pgleader.postgres import open_session
from celery_pgleader.store import LEDGER_TERMS, Mailbox, Schema
from celery_pgleader.threads import Doorbell, Ending
from example_app.servers import EmbeddedPostgres
from tests.support.eventually import eventually

NOTIFY = "select pgleader.notify(%s, '1')"
# Of the two locks, see the migration.
HELD = "select count(*) from pg_locks where locktype = 'advisory' and classid = 1885826128 and pid = %s"

Connection = psycopg.Connection[Any]


@pytest.fixture
def db(database: str) -> Iterator[Connection]:
    """Give a session that hears the wake-ups of all."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("listen pgleader")
        yield connection


def begin_term(config: Config) -> Term:
    session = LockSession.open(config, "a", LEDGER_TERMS)
    place = session.take_place()
    session.await_lock(lambda: False)
    assert place is not None
    minted = session.mint_term(place)
    assert minted is not None
    # Whether the lock is held is of no concern here.
    session.release("resigned")
    session.close()
    return Term(minted[0], config.election, "a", minted[1])


@contextmanager
def mailbox_of(database: str, *channels: str, election: str = "shop") -> Iterator[Mailbox]:
    """Give what a relay sleeps in."""
    config = Config(database_url=database, election=election)
    mailbox = Mailbox(config, begin_term(config), channels, lambda: True)
    try:
        yield mailbox
    finally:
        mailbox.close()


def is_woken(mailbox: Mailbox, within: float = 30) -> bool:
    """Tell whether a wake-up comes, or has come."""
    with closing(Doorbell()) as bell:
        return mailbox.wait(within, bell)


def wake_ups(db: Connection) -> int:
    """Return how many have been sent since this was last asked; all of one transaction are one."""
    db.execute("select pg_notify('pgleader', 'end')")
    heard: list[str] = []
    while "end" not in heard:
        heard += [notification.payload for notification in db.notifies(timeout=30, stop_after=1)]
    assert heard[-1] == "end"
    return len(heard) - 1


def test_relay_that_is_awake_is_not_woken(database: str, db: Connection) -> None:
    """Since it will look by itself."""
    with mailbox_of(database, "orders") as mailbox:
        db.execute(NOTIFY, ["orders"])
        assert wake_ups(db) == 0
        assert mailbox.lie_down(lightly=False)
        db.execute(NOTIFY, ["orders"])
        db.execute("select pgleader.notify('orders', '1') from generate_series(1, 100)")
        assert wake_ups(db) == 2
        assert is_woken(mailbox)
        mailbox.get_up()
        db.execute(NOTIFY, ["orders"])
        assert wake_ups(db) == 0


def test_relay_waits_for_open_transactions(database: str, db: Connection) -> None:
    """It saw nobody sleep, so the relay stays up, until its row can be seen."""
    with mailbox_of(database, "orders") as mailbox, psycopg.connect(database) as sender:
        sender.execute(NOTIFY, ["orders"])
        assert not mailbox.lie_down(lightly=False)
        db.execute(NOTIFY, ["other"])
        assert wake_ups(db) == 0, "it did not lie down"
        sender.commit()
        assert mailbox.lie_down(lightly=False)
        assert mailbox.is_any_waiting()
        assert wake_ups(db) == 0


def test_later_sender_wakes_a_light_sleeper(database: str, db: Connection) -> None:
    """Those who come later wake the relay, whoever is on the way still."""
    with mailbox_of(database, "orders") as mailbox, psycopg.connect(database) as sender:
        sender.execute(NOTIFY, ["orders"])
        assert not mailbox.lie_down(lightly=True)
        db.execute(NOTIFY, ["orders"])
        assert is_woken(mailbox)
        mailbox.get_up()
        sender.rollback()
        assert mailbox.lie_down(lightly=True)


def test_rolled_back_savepoint_holds_nothing_up(database: str) -> None:
    """Neither it nor its row is there any more."""
    with mailbox_of(database, "orders") as mailbox, psycopg.connect(database) as sender:
        sender.execute("select 1")
        with suppress(psycopg.errors.DivisionByZero), sender.transaction():
            sender.execute(NOTIFY, ["orders"])
            assert not mailbox.lie_down(lightly=False)
            sender.execute("select 1 / 0")
        assert mailbox.lie_down(lightly=False)
        mailbox.get_up()
        with sender.transaction():
            sender.execute(NOTIFY, ["orders"])
        assert not mailbox.lie_down(lightly=False), "a savepoint that is released is part of the transaction"


def test_several_relays_may_sleep(database: str, db: Connection) -> None:
    """As long as one of them does, there are wake-ups."""
    with mailbox_of(database, "orders") as shop, mailbox_of(database, "parcels", election="post") as post:
        assert shop.lie_down(lightly=False)
        assert post.lie_down(lightly=False)
        shop.get_up()
        db.execute(NOTIFY, ["orders"])
        assert wake_ups(db) == 1
        post.get_up()
        db.execute(NOTIFY, ["orders"])
        assert wake_ups(db) == 0


def test_killed_relay_sleeps_no_more(database: str, db: Connection) -> None:
    """Its session ends, and with it its sleep."""
    with mailbox_of(database, "orders") as mailbox:
        assert mailbox.lie_down(lightly=False)
    query = "select count(*) from pg_stat_activity where application_name like 'pgleader relay%'"
    eventually(lambda: db.execute(query).fetchall() == [(0,)])
    db.execute(NOTIFY, ["orders"])
    assert wake_ups(db) == 0


def test_relay_may_sleep_for_long(database: str, db: Connection) -> None:
    """Whatever the role's default for idle sessions is."""
    db.execute(f'alter database "{db.info.dbname}" set idle_session_timeout = 100'.encode())
    with mailbox_of(database, "orders") as mailbox, psycopg.connect(database, autocommit=True) as idle:
        assert mailbox.lie_down(lightly=False)
        # What an idle session without our setting comes to, at the latest by then.
        query = "select from pg_stat_activity where pid = %s"
        eventually(lambda: not db.execute(query, [idle.info.backend_pid]).fetchall())
        db.execute(NOTIFY, ["orders"])
        assert is_woken(mailbox)


@pytest.mark.parametrize("held", [0, 1])
def test_sender_and_relay_wait_for_no_lock(held: int, database: str, db: Connection) -> None:
    """Not even if somebody else should hold one of ours: then the wake-up is sent, and the relay looks often."""
    with mailbox_of(database, "orders") as mailbox, psycopg.connect(database, autocommit=True) as stranger:
        stranger.execute("select pg_advisory_lock(1885826128, %s)", [held])
        db.execute(NOTIFY, ["orders"])
        assert wake_ups(db) == 1
        assert not mailbox.lie_down(lightly=True)


def test_superseded_relay_sees_nothing(database: str, db: Connection) -> None:
    """As it may dispatch nothing."""
    with mailbox_of(database, "orders") as mailbox:
        db.execute(NOTIFY, ["orders"])
        assert mailbox.is_any_waiting()
        db.execute("update pgleader.elections set term = term + 1")
        assert not mailbox.is_any_waiting()
        assert mailbox.waiting() == ([], False)


def test_transaction_takes_one_lock_however_many_it_sends(database: str) -> None:
    """Locks are few in a server."""
    with psycopg.connect(database) as sender:
        sender.execute("select pgleader.notify('channel ' || g, '1') from generate_series(1, 1000) g")
        assert sender.execute(HELD, [sender.info.backend_pid]).fetchall() == [(1,)]


def test_functions_on_the_search_path_cannot_hide_a_sleeper(database: str, db: Connection) -> None:
    """By functions or operators on the sender's search path."""
    db.execute("create schema mine")
    db.execute("create function mine.pg_try_advisory_lock(int, int) returns bool return true")
    db.execute("create function mine.current_setting(text, bool) returns text return 'off'")
    db.execute("create function mine.same(text, text) returns bool return true")
    db.execute("create operator mine.= (leftarg = text, rightarg = text, function = mine.same)")
    db.execute("set search_path = mine, pg_catalog")
    with mailbox_of(database, "orders") as mailbox:
        assert mailbox.lie_down(lightly=False)
        db.execute(NOTIFY, ["orders"])
        assert is_woken(mailbox)


@contextmanager
def two_phase(server: EmbeddedPostgres) -> Iterator[tuple[Mailbox, Connection]]:
    """Give a mailbox and a sender whose transactions may be prepared."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("alter system set max_prepared_transactions = 5")
    server.restart()
    with open_session(server.url(), "test", unresponsive_after=5) as session:
        Schema(session).migrate()
    with mailbox_of(server.url(), "orders") as mailbox, psycopg.connect(server.url(), autocommit=True) as sender:
        yield mailbox, sender


def test_relay_waits_for_prepared_transactions(own_postgres: EmbeddedPostgres) -> None:
    """It is in nobody's hands, and may be committed by anybody, at any time."""
    with two_phase(own_postgres) as (mailbox, sender):
        sender.execute("begin")
        sender.execute(NOTIFY, ["orders"])
        sender.execute("prepare transaction 'it'")
        assert not mailbox.lie_down(lightly=False)
        sender.execute("commit prepared 'it'")
        assert mailbox.lie_down(lightly=False)
        assert mailbox.is_any_waiting()


def test_prepared_transaction_without_wake_ups_wakes_no_relay(own_postgres: EmbeddedPostgres) -> None:
    """Postgres refuses to prepare a transaction that has sent a NOTIFY."""
    with two_phase(own_postgres) as (mailbox, sender):
        assert mailbox.lie_down(lightly=False)
        sender.execute("set pgleader.wake = off")
        sender.execute("begin")
        sender.execute(NOTIFY, ["orders"])
        sender.execute("prepare transaction 'it'")
        sender.execute("commit prepared 'it'")
        assert mailbox.is_any_waiting()
        assert not is_woken(mailbox, 0)


@pytest.mark.parametrize("strikes", [40, pytest.param(400, marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_cancelled_sender_leaves_no_lock(how: str, strikes: int, database: str, db: Connection) -> None:
    """At whatever point: a session is given back to its pool afterwards, and may live for days."""
    statement = "do $$ begin for i in 1..10000 loop perform pgleader.notify('orders', '1'); end loop; end $$"
    chance = random.Random(1)
    struck = 0
    sender = psycopg.connect(database, autocommit=True)
    while struck < strikes:
        pid = sender.info.backend_pid
        strike = threading.Timer(chance.uniform(0, 0.03), db.execute, [f"select {how}(%s)", [pid]])
        strike.start()
        try:
            sender.execute(statement)
        except psycopg.OperationalError:
            struck += 1
        strike.join()
        if sender.broken:
            sender = psycopg.connect(database, autocommit=True)
        eventually(lambda pid=pid: db.execute(HELD, [pid]).fetchall() == [(0,)])  # type: ignore[misc]  # of this round
    sender.close()


# With a relay


@pytest.fixture
def relayed(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], object]]:
    """Have notifications relayed by one that looks again in an hour only; give what waits until none waits."""
    monkeypatch.setattr(relay_module, "POLL", 3_600.0)
    app = Celery("shop", broker="memory://", set_as_current=False)

    @app.task(name="shop.on_order", shared=False)
    def on_order(order: object) -> None:
        """Handle an order."""

    config = Config(database_url=database, election="shop")
    term = begin_term(config)
    leadership = Leadership()
    leadership.gain(term, float("inf"), "elected")
    ended = Ending()
    relay = Relay(app, config, leadership, {"orders": (Route("shop.on_order"),)})
    thread = threading.Thread(target=relay.run, args=[term, ended], daemon=True)
    thread.start()
    with psycopg.connect(database, autocommit=True) as connection:
        query = "select count(*) from pgleader.notifications"
        yield lambda: eventually(lambda: connection.execute(query).fetchall() == [(0,)])
        assert connection.execute("select count(*) from pgleader.dead_letters").fetchall() == [(0,)]
    ended.set()
    thread.join(30)
    assert not thread.is_alive()


class Sender(threading.Thread):
    """Sends in transactions of all sorts, short and long, and thinks in between."""

    def __init__(self, database: str, seed: int) -> None:
        """Connect."""
        super().__init__(daemon=True)
        self._chance = random.Random(seed)
        self._connection = psycopg.connect(database)

    def run(self) -> None:
        """Send a few."""
        with self._connection as connection:
            for _ in range(self._chance.randint(1, 4)):
                self._think(0.004)
                how = self._chance.random()
                with suppress(psycopg.errors.DivisionByZero), connection.transaction():
                    connection.execute(NOTIFY, ["orders"])
                    self._think(0.3 if how < 0.02 else 0.002)
                    if how > 0.8:
                        self._have_a_savepoint_fail()
                    if how > 0.9:
                        connection.execute("select 1 / 0")

    def _have_a_savepoint_fail(self) -> None:
        with suppress(psycopg.errors.DivisionByZero), self._connection.transaction():
            self._connection.execute(NOTIFY, ["orders"])
            self._connection.execute("select 1 / 0")

    def _think(self, longest: float) -> None:
        threading.Event().wait(self._chance.uniform(0, longest))


@pytest.mark.parametrize("rounds", [30, pytest.param(300, marks=pytest.mark.long)])
def test_sleeping_relay_overlooks_nothing(database: str, relayed: Callable[[], None], rounds: int) -> None:
    """By a relay that sleeps in between: many senders at once, and then none that could wake it for another's sake."""
    for seed in range(rounds):
        senders = [Sender(database, 10 * seed + number) for number in range(seed % 6 + 1)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        relayed()
