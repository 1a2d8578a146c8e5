"""A PgBouncer in between: refused where it shares sessions out by transaction, harmless in session mode."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from celery import Celery
from click.testing import CliRunner

from celery_pgleader.cli.plugin import pgleader
from celery_pgleader.config import Config
from celery_pgleader.election import Change, Elector, LockSession, Term
from celery_pgleader.election.state import Phase
from celery_pgleader.notifications.sending import notify
from celery_pgleader.postgres import SessionShared, open_session
from celery_pgleader.store import LEDGER_TERMS, Ledger, Mailbox
from celery_pgleader.store.runs import Runs
from tests.support.eventually import eventually
from tests.support.pgbouncer import PgBouncer

PATIENCE = 60.0
REFUSAL = (
    "a pooler in transaction or statement mode is in between, and a session of one's own is needed:"
    " connect to Postgres directly, or through a pooler in session mode (PgBouncer: pool_mode = session)"
)
TERM = Term(1, "default", "node", 1)

Pooler = Callable[..., PgBouncer]


def open_lock_session(config: Config, node: str) -> LockSession:
    return LockSession.open(config, node, LEDGER_TERMS)


@pytest.fixture
def elector() -> Iterator[Callable[[str, str], tuple[Elector, list[Change]]]]:
    """Make electors that stand for one election, and lists of what they are told."""
    with ExitStack() as stack:

        def make(url: str, node: str) -> tuple[Elector, list[Change]]:
            changes: list[Change] = []
            config = Config(database_url=url, renew_interval=0.4, poll_interval=0.5)
            made = Elector(config, node, open_session=open_lock_session)
            made.leadership.subscribe(changes.append)
            made.start()
            stack.callback(made.stop, PATIENCE)
            return made, changes

        yield make


@pytest.fixture
def busy() -> Iterator[Callable[[str, int], None]]:
    """Keep a pooler busy with clients of another program."""
    ended = threading.Event()
    clients: list[threading.Thread] = []

    def ask(url: str) -> None:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            while not ended.is_set():
                connection.execute("select pg_sleep(0.0005 * random())")

    def begin(url: str, count: int) -> None:
        clients.extend(threading.Thread(target=ask, args=(url,)) for _ in range(count))
        for client in clients:
            client.start()

    yield begin
    ended.set()
    for client in clients:
        client.join(PATIENCE)


@pytest.mark.parametrize("order", ["last used", "round robin"])
@pytest.mark.parametrize("pool_size", [1, 2, 20])
@pytest.mark.parametrize("pool_mode", ["transaction", "statement"])
def test_incident_5_pooler_that_mixes_sessions_is_refused(
    pool_mode: str, pool_size: int, order: str, pooler: Pooler, database: str
) -> None:
    """Whether nobody else uses it, or its pool is warm (authentik#23876)."""
    url = pooler(pool_mode, pool_size, round_robin=order == "round robin").in_front_of(database)
    for warm in range(2):
        with pytest.raises(SessionShared) as refused:
            open_session(url, "test", unresponsive_after=5)
        assert str(refused.value) == REFUSAL
        if not warm:
            with ExitStack() as stack:
                clients = [stack.enter_context(psycopg.connect(url, autocommit=True)) for _ in range(pool_size)]
                threads = [
                    threading.Thread(target=client.execute, args=("select pg_sleep(0.1)",)) for client in clients
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(PATIENCE)


@pytest.mark.parametrize("pool_size", [4, 20])
def test_busy_pooler_that_mixes_sessions_is_refused(
    pool_size: int, pooler: Pooler, database: str, busy: Callable[[str, int], None]
) -> None:
    """Others take sessions and give them back all the while."""
    url = pooler("transaction", pool_size).in_front_of(database)
    busy(url, 8)
    for _ in range(20):
        with pytest.raises(SessionShared):
            open_session(url, "test", unresponsive_after=5)


def test_busy_pooler_in_session_mode_is_not_refused(
    pooler: Pooler, database: str, busy: Callable[[str, int], None]
) -> None:
    """Nor does anybody see a difference between its sessions and direct ones."""
    url = pooler("session").in_front_of(database)
    busy(url, 4)
    for _ in range(20):
        with open_session(url, "test", unresponsive_after=5) as session:
            assert session.execute("select 1").fetchall() == [(1,)]


def test_pool_of_one_session_is_not_refused(pooler: Pooler, database: str) -> None:
    """What cannot be told is not held against it."""
    url = pooler("session", 1).in_front_of(database)
    with open_session(url, "test", unresponsive_after=5) as session:
        assert session.execute("select 1").fetchall() == [(1,)]


def test_refused_session_changes_nothing_for_others(pooler: Pooler, database: str) -> None:
    """A setting of ours would stay with the session, for whoever gets it next."""
    url = pooler("transaction", 1).in_front_of(database)
    with psycopg.connect(url, autocommit=True) as other:
        settings = "select name, setting from pg_settings where name <> 'application_name' order by name"
        before = other.execute(settings).fetchall()
        for attempt in (
            lambda: open_lock_session(Config(database_url=url), "node"),
            lambda: Ledger(Config(database_url=url), TERM, lambda: True).entries(),
            lambda: Mailbox(Config(database_url=url), TERM, ["orders"], lambda: True),
            lambda: Runs(Config(database_url=url), "node").begin([1]),
        ):
            with pytest.raises(SessionShared):
                attempt()
        assert other.execute(settings).fetchall() == before
        assert other.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchall() == [(0,)]


def test_node_behind_an_unsuitable_pooler_warns_once(
    pooler: Pooler, database: str, elector: Callable[[str, str], tuple[Elector, list[Change]]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """And tries again: when the pooler has been put right, it leads."""
    bouncer = pooler("transaction")
    stands, changes = elector(bouncer.in_front_of(database), "node")
    eventually(lambda: stands._candidacy._election.failures >= 3, timeout=PATIENCE)  # type: ignore[union-attr]  # noqa: SLF001
    assert [
        record.getMessage().partition("): ")[2] for record in caplog.records if record.levelno >= logging.WARNING
    ] == [REFUSAL]
    assert not changes
    bouncer.stop()
    bouncer.pool_mode = "session"
    bouncer.start()
    assert stands.leadership.wait(PATIENCE)


def test_election_works_through_a_pooler_in_session_mode(
    pooler: Pooler, database: str, elector: Callable[[str, str], tuple[Elector, list[Change]]]
) -> None:
    """Some nodes through a pooler, one directly: the lead passes on by every way there is, and terms rise."""
    url = pooler("session").in_front_of(database)
    electors = [elector(where, node) for where, node in ((url, "a"), (url, "b"), (database, "direct"))]

    def leaders() -> list[Elector]:
        return [one for one, _ in electors if one.leadership.trusted()]

    terms = []
    for number in range(6):
        eventually(lambda: len(leaders()) == 1, timeout=PATIENCE)
        (leader,) = leaders()
        eventually(lambda: len([e for e, _ in electors if e.phase is Phase.SUCCESSOR]) == 2, timeout=PATIENCE)
        term = leader.leadership.term
        assert term is not None
        terms.append(term.number)
        if number % 2:
            leader.resign(stand_back=0)
        else:
            with psycopg.connect(database, autocommit=True) as operator:
                operator.execute("select pg_terminate_backend(%s)", [term.backend_pid])
        eventually(lambda term=term, leader=leader: not leader.leadership.trusted(term), timeout=PATIENCE)  # type: ignore[misc]
    assert terms == list(range(1, 7))


def test_notifications_may_be_sent_through_any_pooler(pooler: Pooler, database: str) -> None:
    """A web application keeps its pooler."""
    open_lock_session(Config(database_url=database), "node").close()
    url = pooler("transaction").in_front_of(database)
    with psycopg.connect(url) as connection:
        notify("orders", {"id": 1}, connection=connection)
    with psycopg.connect(database) as connection:
        assert connection.execute("select channel from pgleader.notifications").fetchall() == [("orders",)]


def test_commands_work_through_a_pooler_as_documented(pooler: Pooler, database: str) -> None:
    """Most of them send one statement at a time; the page on poolers says which are refused."""
    open_lock_session(Config(database_url=database), "node").close()
    app = Celery("shop", set_as_current=False)
    app.conf.update(pgleader_database_url=pooler("transaction").in_front_of(database))
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "poolers.md").read_text()
    (refused,) = [line for line in page.splitlines() if line.startswith("| `migrate`")]
    for words in (
        "status",
        "history",
        "schedule",
        "check --leader-exists",
        "pause",
        "notify orders 1",
        "migrate",
        "notifications list",
        "watches",
    ):
        result = CliRunner().invoke(pgleader, words.split(), obj=SimpleNamespace(app=app))
        assert (REFUSAL in result.stderr) == (f"`{words.split()[0]}`" in refused), words
        assert "Traceback" not in result.output


def test_later_term_ends_the_other_behind_an_undetected_pooler(
    pooler: Pooler,
    database: str,
    elector: Callable[[str, str], tuple[Elector, list[Change]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two nodes that share one session both see their lock held. The later term counts, and ends the other."""
    monkeypatch.setattr("celery_pgleader.postgres._refuse_if_shared", lambda _session, _conninfo: None)
    url = pooler("transaction", 1).in_front_of(database)
    (first, told), (second, _) = elector(url, "a"), elector(url, "b")
    eventually(lambda: [c for c in told if not c.gained], timeout=PATIENCE)
    assert "the lock, or the latest term, is no longer this session's" in {c.reason for c in told if not c.gained}
    assert first.node != second.node
