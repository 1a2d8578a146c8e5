"""Who may do what: the owner of the schema, the workers' role, senders, and whoever can merely connect."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.errors import InsufficientPrivilege

from celery_pgleader import LeaderElector
from celery_pgleader.config import Config
from celery_pgleader.election import Elector, LockSession
from celery_pgleader.election.lock_key import leader_key
from celery_pgleader.election.observer import observe
from celery_pgleader.notifications.watches import Watch, script_of
from celery_pgleader.store import LEDGER_TERMS
from celery_pgleader.store.schema import grants
from tests.support.eventually import eventually

PATIENCE = 60.0

Role = Callable[..., str]


@pytest.fixture
def root(empty_database: str) -> Iterator[psycopg.Connection[Any]]:
    """Give a connection of the superuser."""
    with psycopg.connect(empty_database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def role(root: psycopg.Connection[Any], empty_database: str) -> Iterator[Role]:
    """Make roles with certain rights; return the URL with which each connects."""
    made: list[sql.Identifier] = []

    def make(*statements: str) -> str:
        name = f"role_{uuid.uuid4().hex[:8]}"
        made.append(sql.Identifier(name))
        root.execute(sql.SQL("create role {} login").format(made[-1]))
        for statement in statements:
            root.execute(sql.SQL(statement).format(role=made[-1], database=sql.Identifier(root.info.dbname)))
        return make_conninfo(empty_database, user=name)

    yield make
    for identifier in made:
        root.execute(sql.SQL("drop owned by {} cascade").format(identifier))
        root.execute(sql.SQL("drop role {}").format(identifier))


@pytest.fixture
def owner(role: Role) -> str:
    """Give the URL of the role that owns the schema, which is there."""
    url = role("grant create on database {database} to {role}")
    LockSession.open(Config(database_url=url), "owner", LEDGER_TERMS).close()
    return url


@pytest.fixture
def workers(owner: str, role: Role) -> str:
    """Give the URL of the workers' role."""
    url = role()
    with psycopg.connect(owner) as connection:
        connection.execute(grants(user_of(url)))
    return url


def user_of(url: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(url)["user"])


def may(url: str, statement: str) -> bool:
    """Tell whether a role may do something; it is not done."""
    with psycopg.connect(url) as connection:
        try:
            connection.execute(statement.encode())
        except InsufficientPrivilege:
            return False
        finally:
            connection.rollback()
    return True


@pytest.fixture
def electing() -> Iterator[Callable[[str], Elector]]:
    """Start electors of workers."""
    electors: list[Elector] = []

    def start(url: str) -> Elector:
        config = Config(database_url=url, renew_interval=0.2, poll_interval=0.2)
        electors.append(Elector(config, "node", open_session=lambda c, n: LockSession.open(c, n, LEDGER_TERMS)))
        electors[-1].start()
        return electors[-1]

    yield start
    for elector in electors:
        elector.stop(PATIENCE)


TABLES = "select c.relname from pg_class c where c.relnamespace = 'pgleader'::regnamespace and c.relkind = 'r'"


def test_stranger_can_neither_read_nor_write(owner: str, role: Role, root: Any) -> None:
    """Not one table, not a durable notification, not a fence."""
    url = role()
    with psycopg.connect(owner) as connection:
        connection.execute("select pgleader.notify('orders', '{\"secret\": 1}')")
    for (table,) in root.execute(TABLES).fetchall():
        assert not may(url, f"select from pgleader.{table}")
        assert not may(url, f"delete from pgleader.{table}")
    assert not may(url, "select pgleader.notify('orders', '1')")
    assert not may(url, "select pgleader.fence('default', 1)")
    assert not may(url, "create table pgleader.mine ()")


def test_stranger_does_not_lead_by_accident(
    owner: str, workers: str, role: Role, electing: Callable[[str], Elector]
) -> None:
    """A worker with the wrong role takes not even a place in line."""
    stranger = electing(role())
    eventually(lambda: stranger._candidacy._election.failures >= 2, timeout=PATIENCE)  # type: ignore[union-attr]  # noqa: SLF001
    assert not observe(Config(database_url=owner))
    assert electing(workers).leadership.wait(PATIENCE)


def test_stranger_with_the_lock_delays_the_election_and_no_more(
    owner: str, workers: str, role: Role, root: Any, electing: Callable[[str], Elector]
) -> None:
    """Whoever can connect can take any advisory lock. They are seen, can write nothing, and can be put out."""
    config = Config(database_url=owner)
    lock = sql.SQL("select pg_advisory_lock({})").format(leader_key(config).as_arguments())
    with psycopg.connect(role(), autocommit=True, application_name="a stranger") as stranger:
        stranger.execute(lock)
        waits = electing(workers)
        eventually(lambda: len(observe(config)) == 2, timeout=PATIENCE)
        assert [(seat.role, seat.node) for seat in observe(config)] == [("leader", "a stranger"), ("successor", "node")]
        assert waits.leadership.term is None
        assert root.execute("select count(*) from pgleader.terms").fetchone() == (0,)
        root.execute("select pg_terminate_backend(%s)", [stranger.info.backend_pid])
        assert waits.leadership.wait(PATIENCE)


def test_role_without_connect_cannot_take_the_lock(owner: str, role: Role, root: Any) -> None:
    """The remedy: CONNECT is not for everybody."""
    url = role()
    root.execute(sql.SQL("revoke connect on database {} from public").format(sql.Identifier(root.info.dbname)))
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(url)


def test_elector_without_tables_cannot_write_for_the_workers(owner: str, role: Role, root: Any) -> None:
    """It may hold their lock, if it names their election; but its terms count for nothing in the ledger."""
    with LeaderElector(role(), election="default") as elector:
        assert elector.leadership.wait(PATIENCE)
    assert root.execute("select count(*) from pgleader.elections").fetchone() == (0,)


def test_workers_role_cannot_change_the_schema(workers: str, electing: Callable[[str], Elector]) -> None:
    """It leads, but owns nothing and can create nothing."""
    assert electing(workers).leadership.wait(PATIENCE)
    assert may(workers, "select from pgleader.slots")
    assert not may(workers, "create table pgleader.mine ()")
    assert not may(workers, "drop table pgleader.slots")
    assert not may(workers, "alter table pgleader.slots disable trigger all")
    assert not may(workers, "create or replace function pgleader.fence(text, bigint) returns void as '' language sql")
    assert not may(workers, "create schema mine")


def test_sender_can_send_and_nothing_else(owner: str, role: Role, root: Any) -> None:
    """Not read, not choose the id from which task ids are made, not touch what others have sent."""
    sender = role(
        "grant usage on schema pgleader to {role}",
        "grant insert (channel, key, payload) on pgleader.notifications to {role}",
    )
    assert may(sender, "select pgleader.notify('orders', '1', 'k')")
    for statement in (
        "select from pgleader.notifications",
        "delete from pgleader.notifications",
        "insert into pgleader.notifications (uid, channel, payload) values (gen_random_uuid(), 'orders', '1')",
        "select from pgleader.dead_letters",
        "select from pgleader.terms",
        "select pgleader.fence('default', 1)",
    ):
        assert not may(sender, statement), statement


DEFINERS = """
select p.proname, p.prosecdef, coalesce(p.proconfig, '{}'), has_function_privilege('public', p.oid, 'execute')
  from pg_proc p where p.pronamespace = 'pgleader'::regnamespace
"""


def test_security_definer_functions_pin_their_search_path(owner: str, role: Role, root: Any) -> None:
    """Those of watches and counters alone have such rights; and nobody else can hang them on a table of their own."""
    with psycopg.connect(owner) as connection:
        connection.execute("create schema shop")
        for per in ("row", "statement"):
            connection.execute(sql.SQL("create table {} (id int primary key)").format(sql.Identifier("shop", per)))
            connection.execute(script_of(connection, Watch(f"shop.{per}", "orders", per=per)))
    found = root.execute(DEFINERS).fetchall()
    definers = [(name, config, public) for name, definer, config, public in found if definer]
    assert len(definers) == 5
    for name, config, public in definers:
        assert name.startswith(("count_", "watch_"))
        assert config == ["search_path=pg_catalog, pg_temp"]
        assert not public
    sender = role("grant usage on schema pgleader to {role}")
    with psycopg.connect(sender) as connection:
        connection.execute("create temp table mine (id int primary key)")
        trigger = sql.SQL("create trigger mine after insert on mine for each row execute function pgleader.{}()")
        for name, _, _ in definers:
            with pytest.raises(InsufficientPrivilege), connection.transaction():
                connection.execute(trigger.format(sql.Identifier(name)))


HOSTILE = """
create schema evil;
grant usage on schema evil to public;
create function evil.pg_try_advisory_lock(int, int) returns boolean as 'select true' language sql;
create function evil.pg_advisory_lock(int, int) returns void as '' language sql;
create function evil.pg_backend_pid() returns int as 'select 1' language sql;
create function evil.clock_timestamp() returns timestamptz as 'select now() - interval ''1 year''' language sql;
create function evil.pg_advisory_unlock_all() returns void as '' language sql;
create view evil.pg_locks as select * from pg_catalog.pg_locks where false;
"""


def test_functions_on_the_search_path_cannot_replace_those_of_postgres(
    workers: str, root: Any, electing: Callable[[str], Elector]
) -> None:
    """Even where they come before those by the default of the role."""
    root.execute(HOSTILE)
    root.execute(sql.SQL("alter role {} set search_path = evil, pg_catalog").format(sql.Identifier(user_of(workers))))
    with psycopg.connect(workers) as connection:
        assert connection.execute("select pg_backend_pid()").fetchone() == (1,)
    first, second = electing(workers), electing(workers)
    eventually(lambda: first.leadership.trusted() or second.leadership.trusted(), timeout=PATIENCE)
    eventually(lambda: len(observe(Config(database_url=root.info.dsn))) == 2, timeout=PATIENCE)
    assert not (first.leadership.trusted() and second.leadership.trusted())
    leader = first if first.leadership.trusted() else second
    term = leader.leadership.term
    assert term is not None
    held = "select count(*) from pg_locks where locktype = 'advisory' and granted and pid = %s"
    assert root.execute(held, [term.backend_pid]).fetchone() == (1,)


def test_fence_does_not_depend_on_the_search_path(owner: str) -> None:
    """An operator that finds all equal does not let a stale leader write."""
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("insert into pgleader.elections (election, term, node) values ('shop', 8, 'a')")
        connection.execute("create schema mine")
        for kind in ("text", "bigint"):
            connection.execute(f"create function mine.same({kind}, {kind}) returns bool return true")
            connection.execute(f"create operator mine.= (leftarg = {kind}, rightarg = {kind}, function = mine.same)")
        connection.execute("set search_path = mine, pg_catalog")
        connection.execute("select pgleader.fence('shop', 8)")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            connection.execute("select pgleader.fence('shop', 7)")
