"""Whatever a user types: it is done, or refused in one line. No traceback, and what there was is still there."""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace
from typing import Any

import click
import psycopg
import pytest
from celery import Celery
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from celery_pgleader.cli.plugin import pgleader
from celery_pgleader.config import Config
from celery_pgleader.election import Elector
from celery_pgleader.errors import ConfigurationError
from celery_pgleader.postgres import Error, open_session
from tests.support.eventually import eventually

PATIENCE = 60.0
EXIT_CODES = {0, 1, 2, 69, 77}

# What a terminal can pass on: no NUL, and bytes that are no UTF-8 as lone surrogates.
texts = st.text(st.characters(exclude_characters="\0") | st.sampled_from("'\"\\%:$\n\udcff{};-"), max_size=12)
words = (
    texts
    | st.integers().map(str)
    | st.sampled_from(
        ["orders", "public.orders", "other", "id", "insert", "row", "new.id > 0", "postgres", "1/0", "{}", '{"a": 1}']
    )
    | st.sampled_from(
        ["[" * 5_000, '"\\u0000"', "NaN", "1e999", "x" * 9_000, "x" * 64, ".", "a.b.c.d", '"', "select", "--", "-"]
    )
)
fuzzed = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def commands(group: click.Group, *path: str) -> dict[tuple[str, ...], click.Command]:
    """Return the commands of a group and of its groups."""
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        found |= commands(command, *path, name) if isinstance(command, click.Group) else {(*path, name): command}
    return found


# Those that ask the database alone; orders wait for a leader to answer.
ALONE = {"migrate", "notifications", "notify", "watch", "unwatch", "watches"}
COMMANDS = {path: command for path, command in commands(pgleader).items() if path[0] in ALONE}


@pytest.fixture
def shop(database: str) -> str:
    """Give a database with a table, a notification that waits, and a dead letter."""
    with open_session(database, "test", unresponsive_after=5) as session:
        session.execute("create table orders (id int primary key, total int)")
        session.execute("select pgleader.notify('kept', '1')")
        session.execute(
            "insert into pgleader.dead_letters (id, uid, channel, payload, sent_at, attempts, error)"
            " values (-1, gen_random_uuid(), 'kept', '1', now(), 5, 'poison')"
        )
    return database


@st.composite
def arguments(draw: st.DrawFn, command: click.Command) -> list[str]:
    """Make arguments for a command: options that it has, with any words, and then any words."""
    made: list[str] = []
    for param in command.params:
        if isinstance(param, click.Option) and param.name != "help" and (param.required or draw(st.booleans())):
            name = draw(st.sampled_from([*param.opts, *param.secondary_opts]))
            made += [name] if param.is_flag else [name, draw(words)]
    wanted = sum(isinstance(param, click.Argument) for param in command.params)
    return [*made, "--", *draw(st.lists(words, min_size=wanted, max_size=wanted))]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@fuzzed
@given(data=st.data())
def test_any_command_is_done_or_refused_in_one_line(path: tuple[str, ...], shop: str, data: st.DataObject) -> None:
    """Ends with one of the documented exit codes, and says why in one line."""
    given_words = data.draw(arguments(COMMANDS[path]))
    app = Celery("shop", set_as_current=False)
    app.conf.update(pgleader_database_url=shop)
    result = CliRunner().invoke(pgleader, [*path, *given_words], obj=SimpleNamespace(app=app))
    assert result.exception is None or isinstance(result.exception, SystemExit), given_words
    assert result.exit_code in EXIT_CODES, result.output
    if result.exit_code in {1, 77}:
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: "), line
    with psycopg.connect(shop) as connection:
        assert connection.execute("select 1 from pgleader.notifications where channel = 'kept'").fetchone()
        if path[-1] not in {"retry", "drop"}:
            assert connection.execute("select 1 from pgleader.dead_letters where id = -1").fetchone()


options = st.dictionaries(
    st.sampled_from(["port", "connect_timeout", "sslmode", "sslrootcert", "target_session_attrs", "options", "service"])
    | st.sampled_from(["client_encoding", "application_name", "user", "dbname", "tcp_user_timeout", "require_auth"]),
    texts | st.sampled_from(["1", "0", "-1", "99999999999", "5,6", "require", "read-only", "-c x=1", "utf8"]),
    max_size=3,
)
# None of them is looked up anywhere else.
hosts = st.sampled_from(
    ["127.0.0.1", "127.0.0.1,127.0.0.1", "a..b", "." * 3, "x" * 70, "/nonexistent", "@nonexistent", "::1"]
)


@fuzzed
@given(host=hosts, given_options=options)
def test_any_database_url_connects_or_raises_an_expected_error(
    host: str, given_options: dict[str, str], database: str
) -> None:
    """Leads somewhere, or to an error that is waited out."""
    try:
        url = make_conninfo(database, **{"host": host, **given_options})
        Config(database_url=url)
    except (psycopg.ProgrammingError, UnicodeEncodeError, ConfigurationError):
        return
    with contextlib.suppress(Error, OSError), open_session(url, "test", unresponsive_after=5) as session:
        assert session.execute("select 1").fetchall() == [(1,)]


def test_elector_outlives_a_host_that_cannot_be_looked_up(caplog: pytest.LogCaptureFixture) -> None:
    """It says so once, and goes on trying."""
    elector = Elector(Config(database_url="host=a..b dbname=shop", ttl=1), "node")
    elector.start()
    try:
        candidacy: Any = elector._candidacy  # noqa: SLF001
        eventually(lambda: candidacy._election.failures >= 3, timeout=PATIENCE)  # noqa: SLF001
    finally:
        elector.stop()
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "the host's name cannot be looked up" in record.getMessage()
    assert record.exc_info is None
