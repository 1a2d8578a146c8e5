"""The schema: applied once, whoever comes and however many; and the words for those who may not."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from celery import Celery
from click.testing import CliRunner, Result
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.errors import InsufficientPrivilege

from celery_pgleader.cli.plugin import pgleader
from celery_pgleader.config import Config
from celery_pgleader.election import Elector, LockSession, Term
from celery_pgleader.errors import ServerUnsuitable
from celery_pgleader.postgres import Session, open_session
from celery_pgleader.store import LEDGER_TERMS, EntryRecord, Ledger, Outcome, Schema, SlotRow
from celery_pgleader.store.runs import Runs, task_key
from celery_pgleader.store.schema import LOCK_CLASSID, migrations, script
from tests.support.eventually import eventually

PATIENCE = 60.0
UP_TO_DATE = "the schema pgleader is up to date\n"


@pytest.fixture
def session(empty_database: str) -> Iterator[Session]:
    """Give a session of the superuser."""
    with open_session(empty_database, "test", unresponsive_after=5) as opened:
        yield opened


@pytest.fixture
def plain_role(session: Session) -> Iterator[str]:
    """Give a role that may do nothing but connect, and whose name has to be quoted."""
    name = f'Plain "{uuid.uuid4().hex[:8]}'
    session.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
    yield name
    session.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
    session.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@pytest.fixture
def plain_url(empty_database: str, plain_role: str) -> str:
    """Give the URL with which that role connects."""
    return make_conninfo(empty_database, user=plain_role)


def ensure(url: str) -> None:
    """Do what every session of an election begins with."""
    with open_session(url, "test", unresponsive_after=5) as session:
        Schema(session).ensure()


def refusal(url: str) -> str:
    """Return the words with which the schema says that it cannot be used."""
    with pytest.raises(ServerUnsuitable) as refused:
        ensure(url)
    message = str(refused.value)
    assert "\n" not in message
    return message


def dba_runs(session: Session, statements: str) -> None:
    """Run a script as psql would."""
    session.execute(statements.encode())


def what_to_run(role: str) -> str:
    """Return the end of each refusal."""
    return (
        f"as a role that may, run `celery -A <app> pgleader migrate --role {role}`, or have a DBA run what"
        f" `celery -A <app> pgleader migrate --sql --role {role}` prints"
    )


def name_of(session: Session) -> str:
    """Return the name of a session's database."""
    return session.info.dbname


# Migrations


def test_migrations_are_numbered() -> None:
    """From one, without a gap, as their files are named."""
    steps = migrations()
    assert [step.version for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.name.startswith(f"{step.version:04}_") and step.text.strip() for step in steps)


def test_missing_steps_are_applied_once(session: Session) -> None:
    """In order; afterwards there is nothing left to do."""
    schema = Schema(session)
    assert schema.pending() == migrations()
    assert schema.migrate() == migrations()
    assert schema.pending() == []
    assert schema.migrate() == []
    schema.ensure()
    applied = session.execute("select version from pgleader.migrations order by version").fetchall()
    assert applied == [(step.version,) for step in migrations()]


def test_later_step_is_applied(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without doing the others again; a step that fails leaves nothing behind."""
    first, *others = migrations()
    later = [*others, type(first)(len(others) + 2, "9999_later.sql", "create table pgleader.later (); select 1")]
    monkeypatch.setattr("celery_pgleader.store.schema.migrations", lambda: [first])
    Schema(session).ensure()
    broken = [*later[:-1], type(first)(later[-1].version, "9999_later.sql", later[-1].text + "; select 1/0")]
    monkeypatch.setattr("celery_pgleader.store.schema.migrations", lambda: [first, *broken])
    with pytest.raises(psycopg.errors.DivisionByZero):
        Schema(session).ensure()
    assert Schema(session).pending() == broken
    monkeypatch.setattr("celery_pgleader.store.schema.migrations", lambda: [first, *later])
    Schema(session).ensure()
    assert Schema(session).pending() == []
    session.execute("table pgleader.later")


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_ten_sessions_migrate_at_once(empty_database: str, session: Session, isolation: str) -> None:
    """All of them find it applied, and none fails. They are made to meet: each waits for the same lock."""
    dba_runs(session, f"alter database {name_of(session)} set default_transaction_isolation = '{isolation}'")
    errors: list[BaseException] = []

    def run() -> None:
        try:
            ensure(empty_database)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)

    def waiting() -> int:
        row = session.execute(
            "select count(*) from pg_locks where locktype = 'advisory' and not granted and classid = %s", [LOCK_CLASSID]
        ).fetchone()
        assert row is not None
        return int(row[0])

    threads = [threading.Thread(target=run) for _ in range(10)]
    with session.transaction():
        session.execute("select pg_advisory_xact_lock(%s, 0)", [LOCK_CLASSID])
        for thread in threads:
            thread.start()
        eventually(lambda: waiting() == 10, timeout=PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []
    assert Schema(session).pending() == []


# Roles that may not


def test_role_without_rights_to_create_the_schema_is_told(session: Session, plain_role: str, plain_url: str) -> None:
    """It is told in one line what is missing, and what to run."""
    assert refusal(plain_url) == (
        f"schema pgleader in database {name_of(session)} is missing or old, and role {plain_role} may not change it:"
        f" {what_to_run(plain_role)}"
    )


def test_role_without_rights_to_use_the_schema_is_told(session: Session, plain_role: str, plain_url: str) -> None:
    """Neither while it may not look into it, nor while it may but not touch its tables."""
    Schema(session).migrate()
    words = (
        f"schema pgleader in database {name_of(session)} may not be used by role {plain_role}:"
        f" {what_to_run(plain_role)}"
    )
    assert refusal(plain_url) == words
    role = sql.Identifier(plain_role)
    session.execute(sql.SQL("grant usage on schema pgleader to {}").format(role))
    assert refusal(plain_url) == words
    session.execute(sql.SQL("grant select on all tables in schema pgleader to {}").format(role))
    assert refusal(plain_url) == words
    session.execute(sql.SQL("grant insert, update, delete on all tables in schema pgleader to {}").format(role))
    ensure(plain_url)
    session.execute(sql.SQL("revoke delete on pgleader.slots from {}").format(role))
    assert refusal(plain_url) == words


def test_role_without_rights_to_update_the_schema_is_told(
    session: Session, plain_role: str, plain_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an update of the package, where a DBA has run the script of the one before."""
    dba_runs(session, "".join(script(migrations(), plain_role)))
    ensure(plain_url)
    newer = [*migrations(), type(migrations()[0])(99, "0099_later.sql", "create table pgleader.later ()")]
    monkeypatch.setattr("celery_pgleader.store.schema.migrations", lambda: newer)
    assert "is missing or old, and role" in refusal(plain_url)


def test_elector_waits_for_the_schema(
    session: Session, plain_role: str, plain_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line, as long as it stays so; once a DBA has done it, the node leads."""
    config = Config(database_url=plain_url, ttl=1)
    elector = Elector(config, "plain", open_session=partial(LockSession.open, terms=LEDGER_TERMS))
    elector.start()
    try:
        eventually(lambda: caplog.records, timeout=PATIENCE)
        dba_runs(session, "".join(script(migrations(), plain_role)))
        assert elector.leadership.wait(PATIENCE)
    finally:
        elector.stop(PATIENCE)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.endswith(f"and role {plain_role} may not change it: {what_to_run(plain_role)}")


# What a DBA runs


def test_rights_of_the_script_are_enough(session: Session, plain_role: str, plain_url: str) -> None:
    """A plain role leads, claims, publishes, prunes and runs; and can do no more than that."""
    dba_runs(session, "".join(script(migrations(), plain_role)))
    assert Schema(session).pending() == []
    config = Config(database_url=plain_url, election="shop")
    lock = LockSession.open(config, "plain", LEDGER_TERMS)
    place = lock.take_place()
    assert place is not None
    assert lock.await_lock(lambda: False)
    minted = lock.mint_term(place)
    assert minted is not None
    assert lock.renew(minted[1], 5)
    ledger = Ledger(config, Term(minted[0], "shop", "plain", minted[1]), lambda: True)
    now = datetime.now(timezone.utc)
    slot = now + timedelta(microseconds=1)
    ledger.register({"tick": EntryRecord("shop.tick", "every 0:00:01", now, now)})
    assert ledger.claim([SlotRow("tick", slot, slot, 1, "claimed", None, str(uuid.uuid4()))]) == {"tick"}
    assert ledger.running(["tick"]) == set()
    ledger.settle([Outcome("tick", slot, "published")])
    assert ledger.claimed() == []
    assert ledger.prune() == 0
    ledger.retire(["tick"])
    assert ledger.entries()["tick"].retired
    runs, task_id = Runs(config, "plain"), str(uuid.uuid4())
    key = task_key(task_id)
    assert runs.begin([key])
    runs.finish(task_id)
    assert runs.has_finished(task_id)
    runs.skip("shop", "tick", slot, "overlap")
    runs.end([key])
    with open_session(plain_url, "test", unresponsive_after=5) as plain, pytest.raises(InsufficientPrivilege):
        plain.execute("create table pgleader.mine ()")
    ledger.close()
    lock.release("stopped")
    lock.close()
    # It ends with its process.
    session_of_runs: Any = runs._session  # noqa: SLF001
    session_of_runs.close()


def test_script_without_a_role_grants_nothing(session: Session, plain_url: str) -> None:
    """Only whom it is told to."""
    dba_runs(session, "".join(script(migrations())))
    assert Schema(session).pending() == []
    assert "may not be used by role" in refusal(plain_url)


def test_empty_schema_made_by_hand_is_used(session: Session) -> None:
    """An empty schema of that name, which a DBA may have made with an owner of its own."""
    session.execute("create schema pgleader")
    Schema(session).ensure()
    assert Schema(session).pending() == []


# The command


@pytest.fixture
def migrate(empty_database: str) -> Callable[..., Result]:
    """Run `celery pgleader migrate`, by default as the superuser."""

    def run(*options: str, url: str = empty_database) -> Result:
        app = Celery("shop", set_as_current=False)
        app.conf.update(pgleader_database_url=url)
        return CliRunner().invoke(pgleader, ["migrate", *options], obj=SimpleNamespace(app=app))

    return run


def test_migrate_names_each_step(migrate: Callable[..., Result], session: Session) -> None:
    """The second time there is none."""
    first = migrate()
    assert (first.exit_code, first.stderr) == (0, "")
    assert first.stdout == "".join(f"applied {step.name}\n" for step in migrations()) + UP_TO_DATE
    again = migrate()
    assert (again.exit_code, again.stdout, again.stderr) == (0, UP_TO_DATE, "")
    assert Schema(session).pending() == []


def test_migrate_grants_a_role_what_workers_need(
    migrate: Callable[..., Result], plain_role: str, plain_url: str
) -> None:
    """Also where the schema was there before."""
    assert migrate().exit_code == 0
    assert "may not be used" in refusal(plain_url)
    granted = migrate("--role", plain_role)
    assert (granted.exit_code, granted.stdout) == (0, UP_TO_DATE)
    ensure(plain_url)


def test_migrate_prints_the_script_for_a_dba(
    migrate: Callable[..., Result], session: Session, plain_role: str, plain_url: str
) -> None:
    """What is missing, and nothing is changed."""
    printed = migrate("--sql", "--role", plain_role)
    assert (printed.exit_code, printed.stderr) == (0, "")
    assert printed.stdout == "".join(script(migrations(), plain_role))
    assert Schema(session).pending() == migrations()
    dba_runs(session, printed.stdout)
    ensure(plain_url)
    assert migrate("--sql").stdout == "".join(script([]))
    assert migrate("--sql", "--role", plain_role).stdout == "".join(script([], plain_role))


def test_migrate_prints_the_whole_script_without_a_database(migrate: Callable[..., Result]) -> None:
    """And says so, beside the script."""
    printed = migrate("--sql", url="host=127.0.0.1 port=1 dbname=shop")
    assert (printed.exit_code, printed.stdout) == (0, "".join(script(migrations())))
    assert printed.stderr.startswith("pgleader: cannot ask shop on 127.0.0.1: ")
    assert printed.stderr.count("\n") == 1


@pytest.mark.parametrize("exists", [False, True])
def test_migrate_without_rights_exits_with_77(
    migrate: Callable[..., Result], session: Session, plain_url: str, *, exists: bool
) -> None:
    """It exits with 77, and says so in one line."""
    if exists:
        session.execute("create schema pgleader")
    result = migrate(url=plain_url)
    assert (result.exit_code, result.stdout) == (77, "")
    assert result.stderr.startswith("Error: this role may not: permission denied for ")
    assert result.stderr.count("\n") == 1


def test_migrate_without_a_database_exits_with_69(migrate: Callable[..., Result]) -> None:
    """It exits with 69, and says so in one line."""
    result = migrate(url="host=127.0.0.1 port=1 dbname=shop")
    assert (result.exit_code, result.stdout) == (69, "")
    assert result.stderr.startswith("Error: cannot ask shop on 127.0.0.1: ")
    assert result.stderr.count("\n") == 1


def test_migrate_names_an_unknown_role(migrate: Callable[..., Result], session: Session) -> None:
    """The message has its name; the schema is up to date nevertheless."""
    result = migrate("--role", "nobody_of_that_name")
    assert result.exit_code == 69
    assert 'role "nobody_of_that_name" does not exist' in result.stderr
    assert Schema(session).pending() == []


def test_migrate_refuses_an_unusable_configuration(migrate: Callable[..., Result]) -> None:
    """In the line that each command has for that."""
    result: Any = migrate(url="postgresql://[")
    assert result.exit_code == 1
    assert "pgleader_database_url" in result.stderr
