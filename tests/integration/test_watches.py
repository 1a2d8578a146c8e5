"""Table watches, and the commands for them and for notifications."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from celery import Celery
from click.testing import CliRunner, Result
from psycopg import sql

from celery_pgleader import ConfigurationError
from celery_pgleader.cli import database as asking
from celery_pgleader.cli.plugin import pgleader
from celery_pgleader.notifications import watches
from celery_pgleader.notifications.watches import Watch
from celery_pgleader.store import schema

Connection = psycopg.Connection[Any]


@pytest.fixture
def db(database: str) -> Iterator[Connection]:
    """Give a connection to the database."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def celery(database: str) -> Callable[..., Result]:
    """Run `celery pgleader ...`."""

    def run(*words: str, url: str = database) -> Result:
        app = Celery("shop", set_as_current=False)
        app.conf.update(pgleader_database_url=url)
        return CliRunner().invoke(pgleader, list(words), obj=SimpleNamespace(app=app))

    return run


def start(db: Connection, table: str, channel: str = "orders", **options: Any) -> None:
    with db.transaction():
        db.execute(watches.script_of(db, Watch(table, channel, **options)))


def taken(db: Connection) -> list[tuple[Any, ...]]:
    """Take what was sent: channel, key and payload."""
    return sorted(
        db.execute("delete from pgleader.notifications returning id, channel, key, payload").fetchall(),
        key=lambda row: row[0],
    )


def payloads(db: Connection) -> list[dict[str, Any]]:
    return [payload for *_, payload in taken(db)]


ORDERS = "create table orders (id int primary key, item text, total numeric)"


def test_each_change_of_a_row_is_sent(db: Connection) -> None:
    """With operation, table, key, new and old values; in order within the row."""
    db.execute(ORDERS)
    start(db, "orders")
    db.execute("insert into orders values (1, 'it''s tea', 1.5)")
    db.execute("update orders set total = 2, id = 3")
    db.execute("delete from orders")
    common = {"schema": "public", "table": "orders"}
    first, second = {"id": 1, "item": "it's tea", "total": 1.5}, {"id": 3, "item": "it's tea", "total": 2}
    sent = taken(db)
    assert [payload for *_, payload in sent] == [
        {**common, "operation": "insert", "key": {"id": 1}, "new": first, "old": None},
        {**common, "operation": "update", "key": {"id": 3}, "new": second, "old": first},
        {**common, "operation": "delete", "key": {"id": 3}, "new": None, "old": second},
    ]
    assert [channel for _, channel, _, _ in sent] == ["orders"] * 3
    assert [key for *_, key, _ in sent] == [f'public.orders {{"id": {number}}}' for number in (1, 3, 3)]


def test_rolled_back_change_is_not_sent(db: Connection) -> None:
    """As with any durable notification."""
    db.execute(ORDERS)
    start(db, "orders")
    with db.transaction(force_rollback=True):
        db.execute("insert into orders values (1)")
    assert taken(db) == []


def test_one_notification_is_sent_for_each_statement(db: Connection) -> None:
    """With all its rows, or none if it has changed none."""
    db.execute(ORDERS)
    start(db, "orders", per="statement")
    db.execute("insert into orders select n, 'tea' from generate_series(1, 3) n")
    db.execute("update orders set item = 'milk' where id < 3")
    db.execute("update orders set id = 9 where id = 3")
    db.execute("delete from orders where id = 1")
    db.execute("delete from orders where id = 1")
    inserted, updated, moved, deleted = payloads(db)
    assert [row["new"]["id"] for row in inserted["rows"]] == [1, 2, 3]
    assert {row["old"] for row in inserted["rows"]} == {None}
    assert sorted((row["key"]["id"], row["old"]["item"], row["new"]["item"]) for row in updated["rows"]) == [
        (1, "tea", "milk"),
        (2, "tea", "milk"),
    ]
    # It cannot be told that one has become the other.
    tea = {"item": "tea", "total": None}
    assert sorted(moved["rows"], key=lambda row: row["key"]["id"]) == [
        {"key": {"id": 3}, "new": None, "old": {"id": 3, **tea}},
        {"key": {"id": 9}, "new": {"id": 9, **tea}, "old": None},
    ]
    assert [row["old"]["id"] for row in deleted["rows"]] == [1]
    assert {inserted["operation"], moved["operation"], deleted["operation"]} == {"insert", "update", "delete"}


AWKWARD = ["Order", "it's", 'a "quoted" one', "50 %", "%s", "{0}", "$watch$", "ü ✓", "new", "select", "a.b", "tg_op"]


@pytest.mark.parametrize("per", ["row", "statement"])
@pytest.mark.parametrize("name", AWKWARD)
def test_any_names_can_be_watched(name: str, per: str, db: Connection) -> None:
    """Of schemas, tables, columns and channels."""
    identifier = sql.Identifier(name)
    table = sql.Identifier(f"{name} schema", f"{name} table")
    db.execute(sql.SQL("create schema {}").format(sql.Identifier(f"{name} schema")))
    db.execute(sql.SQL("create table {} (id int, {} text, primary key (id, {}))").format(table, identifier, identifier))
    start(db, table.as_string(db), name, per=per, columns=(name,))
    db.execute(sql.SQL("insert into {} values (1, 'x')").format(table))
    db.execute(sql.SQL("update {} set {} = 'y'").format(table, identifier))
    db.execute(sql.SQL("delete from {}").format(table))
    sent = taken(db)
    assert [channel for _, channel, _, _ in sent] == [name] * 3
    first = sent[0][3] if per == "row" else sent[0][3]["rows"][0]
    assert first["new"] == {name: "x"}
    assert first["key"] == {"id": 1, name: "x"}
    assert (sent[0][3]["schema"], sent[0][3]["table"]) == (f"{name} schema", f"{name} table")
    assert {watch["channel"] for watch in map(watches.describe, watches.watches(db))} == {name}
    db.execute(watches.unwatch_script(db, table.as_string(db), name))
    db.execute(sql.SQL("insert into {} values (1, 'x')").format(table))
    assert taken(db) == []


def test_long_names_can_be_watched(db: Connection) -> None:
    """Two channels that are alike up to their last letter, on a table whose name is as long as can be."""
    table = "t" * 63
    db.execute(sql.SQL("create table {} (id int primary key)").format(sql.Identifier(table)))
    channels = ["c" * 62 + last for last in "ab"]
    for channel in channels:
        start(db, table, channel)
    db.execute(sql.SQL("insert into {} values (1)").format(sql.Identifier(table)))
    assert [channel for _, channel, _, _ in taken(db)] == channels


def test_chosen_columns_are_sent(db: Connection) -> None:
    """Are sent, and their change alone is an update; also of types that cannot be compared."""
    db.execute("create table orders (id int primary key, item text, details json, place point, secret text)")
    start(db, "orders", columns=("item", "details", "place"))
    db.execute("""insert into orders values (1, 'tea', '{"a": 1}', '(1,2)', 'x')""")
    db.execute("update orders set secret = 'y'")
    db.execute("update orders set item = null")
    db.execute("update orders set item = null")
    db.execute("""update orders set details = '{"a": 2}'""")
    db.execute("update orders set place = '(1,3)'")
    inserted, *updated = payloads(db)
    assert inserted["new"] == {"item": "tea", "details": {"a": 1}, "place": "(1,2)"}
    assert [payload["new"]["item"] for payload in updated] == [None] * 3
    assert [payload["old"]["item"] for payload in updated] == ["tea", None, None]


def test_chosen_rows_are_sent(db: Connection) -> None:
    """By a condition, which may well hold a percent sign or braces."""
    db.execute(ORDERS)
    start(db, "orders", when="new.item like '%{tea}%' and old.total is distinct from new.total", operations=("update",))
    db.execute("insert into orders values (1, 'a {tea}', 1), (2, 'milk', 1)")
    db.execute("update orders set total = 2")
    db.execute("update orders set total = 2")
    assert [payload["key"] for payload in payloads(db)] == [{"id": 1}]


def test_more_than_a_hundred_columns_are_sent(db: Connection) -> None:
    """More than a function takes arguments."""
    columns = ", ".join(f"c{number} int default {number}" for number in range(250))
    db.execute(f"create table wide (id int primary key, {columns})".encode())
    start(db, "wide", columns=())
    db.execute("insert into wide values (1)")
    ((payload),) = payloads(db)
    assert payload["new"] == {"id": 1, **{f"c{number}": number for number in range(250)}}


def test_values_of_all_types_are_sent(db: Connection) -> None:
    """Of types of all kinds."""
    db.execute("create type mood as enum ('happy')")
    db.execute(
        "create table things (id uuid primary key default gen_random_uuid(), f float8, n numeric, t timestamptz,"
        " a text[], m mood, j json, b bool, r int4range, i interval, g int generated always as (2 * 21) stored, x int)"
    )
    db.execute("alter table things drop column x")
    start(db, "things")
    db.execute(
        "insert into things (f, n, t, a, m, j, b, r, i) values"
        " ('NaN', '-Infinity', '2020-01-01Z', array['it''s', null], 'happy', '[1, 1]', true, '[1,3)', '1 day')"
    )
    (payload,) = payloads(db)
    new = payload["new"]
    assert (new["f"], new["n"], new["a"], new["m"], new["j"]) == ("NaN", "-Infinity", ["it's", None], "happy", [1, 1])
    assert (new["b"], new["r"], new["i"], new["g"]) == (True, "[1,3)", "1 day", 42)
    assert "x" not in new


@pytest.mark.parametrize("per", ["row", "statement"])
def test_partitioned_table_can_be_watched(per: str, db: Connection) -> None:
    """Also in partitions that are added later."""
    db.execute("create table orders (id int primary key, item text) partition by range (id)")
    db.execute("create table low partition of orders for values from (0) to (10)")
    start(db, "orders", per=per)
    db.execute("create table high partition of orders for values from (10) to (20)")
    db.execute("insert into orders values (1), (11)")
    sent = payloads(db)
    rows = sent if per == "row" else sent[0]["rows"]
    assert [row["key"]["id"] for row in rows] == [1, 11]
    assert len(watches.watches(db)) == 3
    db.execute(watches.unwatch_script(db, "orders", "orders"))
    db.execute("delete from orders")
    assert payloads(db) == []


@pytest.mark.parametrize(
    ("table", "options", "reason"),
    [
        ("keyless", {}, "table keyless has no primary key"),
        ("files", {}, "column content of table files is bytea, which JSON cannot hold: leave it out with --columns"),
        ("hidden", {}, "column content of table hidden is bytea"),
        ("missing", {}, "'missing': there is no such table"),
        ('"unclosed', {}, "there is no such table"),
        ("a.b.c", {}, "there is no such table"),
        ("a.b.c.d", {}, "there is no such table"),
        ("some_view", {}, "there is no such table"),
        ("files", {"columns": ("name", "nmae")}, "no column 'nmae'"),
        ("files", {"operations": ("truncate",)}, "must be of insert, update, delete"),
        ("files", {"operations": ()}, "must be of insert, update, delete"),
        ("files", {"when": "true", "per": "statement"}, "cannot be combined"),
        ("files", {"channel": "x" * 64}, "at most 63 bytes"),
    ],
)
def test_unsuitable_watch_is_refused(table: str, options: dict[str, Any], reason: str, db: Connection) -> None:
    """Has a clear line."""
    db.execute("create table keyless (id int unique)")
    db.execute("create table files (id int primary key, name text, content bytea)")
    db.execute("create domain secret as bytea")
    db.execute("create table hidden (id int primary key, content secret)")
    db.execute("create view some_view as select 1 as id")
    with pytest.raises(ConfigurationError, match="(?s).*" + reason.replace("(", "\\(")):
        watches.script_of(db, Watch(table, **{"channel": "orders", **options}))
    start(db, "files", columns=("id", "name"))


def test_table_is_watched_once_for_each_channel(db: Connection) -> None:
    """For each channel: a second watch would leave some of the first one behind."""
    db.execute(ORDERS)
    start(db, "orders")
    with pytest.raises(ConfigurationError, match=r"public\.orders is watched for channel 'orders' already"):
        start(db, "public.orders", operations=("insert",))
    start(db, "orders", "others")
    db.execute("insert into orders values (1)")
    assert sorted(channel for _, channel, _, _ in taken(db)) == ["orders", "others"]
    db.execute(watches.unwatch_script(db, "orders", "others"))
    start(db, "orders", "others", operations=("delete",))
    db.execute("delete from orders")
    assert sorted(channel for _, channel, _, _ in taken(db)) == ["orders", "others"]
    with pytest.raises(ConfigurationError, match=r"public\.orders is not watched for channel 'neither'"):
        watches.unwatch_script(db, "orders", "neither")


def test_writer_needs_no_rights_on_the_schema(db: Connection, postgres: Any) -> None:
    """On the schema; and cannot have the trigger's function run something else."""
    db.execute(ORDERS)
    start(db, "orders")
    name = db.info.dbname + "_writer"
    writer = sql.Identifier(name)
    db.execute(sql.SQL("create role {} login").format(writer))
    try:
        db.execute(sql.SQL("grant insert, update, delete, select on orders to {}").format(writer))
        db.execute(sql.SQL("grant create on schema public to {}").format(writer))
        with psycopg.connect(postgres.url(db.info.dbname, name), autocommit=True) as connection:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("select pgleader.notify('orders', '1')")
            # In front of what the function calls, if it were to look here.
            for signature in ("pg_notify(text, text) returns void", "lower(text) returns text"):
                body = "$$ begin raise 'run as %', current_user; end $$"
                connection.execute(f"create function public.{signature} language plpgsql as {body}".encode())
            connection.execute("create temp table notifications (id int)")
            connection.execute("set search_path = pg_temp, public, pg_catalog")
            connection.execute("insert into public.orders values (1)")
            connection.execute("update public.orders set item = 'tea'")
        assert [payload["operation"] for payload in payloads(db)] == ["insert", "update"]
    finally:
        db.execute(sql.SQL("drop owned by {0}; drop role {0}").format(writer))
    functions = db.execute(
        "select prosecdef, proconfig from pg_proc"
        " where proname like 'watch%' and pronamespace = 'pgleader'::regnamespace"
    ).fetchall()
    assert functions == [(True, ["search_path=pg_catalog, pg_temp"])]


# The commands


def test_commands_watch_and_unwatch(celery: Callable[..., Result], db: Connection) -> None:
    """What `--sql` prints is what is run."""
    db.execute(ORDERS)
    options = ["orders", "--channel", "o'c", "--on", "insert, delete", "--columns", "id,item", "--when", "true"]
    printed = celery("watch", *options, "--sql")
    assert printed.exit_code == 0
    assert watches.watches(db) == []
    db.execute(printed.stdout.encode())
    by_hand = description(db)
    assert json.loads(celery("watches", "--json").stdout) == [
        {"table": "public.orders", "operation": operation, "channel": "o'c", "per": "row", "columns": ["id", "item"]}
        for operation in ("delete", "insert")
    ]
    assert celery("watches").stdout.splitlines()[0] == "public.orders: delete, per row, to channel o'c"
    end = celery("unwatch", "orders", "--channel", "o'c", "--sql")
    db.execute(end.stdout.encode())
    assert description(db) == []
    watched = celery("watch", *options)
    assert (watched.exit_code, watched.stdout) == (0, "orders is watched: insert, delete to channel o'c\n")
    assert description(db) == by_hand
    again = celery("watch", *options)
    assert (again.exit_code, again.stdout) == (1, "")
    assert 'watched for channel "o\'c" already' in again.stderr
    ended = celery("unwatch", "orders", "--channel", "o'c")
    assert (ended.exit_code, ended.stdout) == (0, "orders is watched no more for channel o'c\n")
    assert description(db) == []
    assert celery("watches").stdout == "no table is watched\n"
    assert celery("unwatch", "orders", "--channel", "o'c").exit_code == 1
    assert celery("watch", "missing", "--channel", "c").exit_code == 1
    assert celery("watch", "orders", "--channel", "c", "--per", "page").exit_code == 2
    assert celery("watch", "orders").exit_code == 2


def description(db: Connection) -> list[tuple[str, str]]:
    """Return the definitions of triggers and of their functions, but for the schema's own."""
    return db.execute(
        "select pg_get_triggerdef(t.oid), pg_get_functiondef(t.tgfoid) from pg_trigger t"
        " join pg_class c on c.oid = t.tgrelid"
        " where not t.tgisinternal and c.relnamespace <> 'pgleader'::regnamespace order by 1"
    ).fetchall()


def bury(db: Connection, channel: str, payload: str, number: int) -> None:
    db.execute(
        "insert into pgleader.dead_letters (id, uid, channel, payload, sent_at, attempts, error)"
        " values (%s, gen_random_uuid(), %s, %s::jsonb, now(), 5, 'no such task')",
        [number, channel, payload],
    )


def test_commands_list_retry_and_drop_notifications(celery: Callable[..., Result], db: Connection) -> None:
    """Listed, sent again, thrown away."""
    assert celery("notifications", "list").stdout == "nothing waits, and there are no dead letters\n"
    db.execute("select pgleader.notify('orders', '1') from generate_series(1, 3)")
    for number, channel in enumerate(("returns", "returns", "orders", "orders", "orders"), 101):
        bury(db, channel, '{"id": 1}' if number < 105 else "1e5000", number)
    listed = celery("notifications", "list")
    assert listed.exit_code == 0
    assert listed.stdout.startswith("waiting  orders: 3, the oldest for ")
    assert listed.stdout.count("5 attempts: no such task") == 5
    found = json.loads(celery("notifications", "list", "--json").stdout)
    assert [(item["channel"], item["waiting"]) for item in found["waiting"]] == [("orders", 3)]
    assert [item["id"] for item in found["dead"]] == [101, 102, 103, 104, 105]
    assert found["dead"][0]["payload"] == {"id": 1}
    assert found["dead"][4]["payload"] == "1" + 5_000 * "0", "what Python cannot read, as text"
    for command in ("retry", "drop"):
        unsaid = celery("notifications", command)
        assert unsaid.exit_code == 2
        assert "say which: ids, --channel, or --all" in unsaid.stderr
    ids = dict(db.execute("select id, uid from pgleader.dead_letters").fetchall())
    assert celery("notifications", "drop", "101", "999").stdout == "1 dropped\n"
    assert celery("notifications", "retry", "103", "102").stdout == "2 go to the end of the line\n"
    assert celery("notifications", "retry", "--channel", "returns").stdout == "0 go to the end of the line\n"
    assert celery("notifications", "drop", "--all").stdout == "2 dropped\n"
    rows = db.execute("select channel, uid, attempts from pgleader.notifications order by id").fetchall()
    assert rows[3:] == [("returns", ids[102], 0), ("orders", ids[103], 0)]


def test_retry_wakes_the_leader(celery: Callable[..., Result], db: Connection) -> None:
    """As a new one would."""
    bury(db, "orders", "1", 7)
    db.execute("listen pgleader")
    assert celery("notifications", "retry", "7").exit_code == 0
    assert len(list(db.notifies(timeout=30, stop_after=1))) == 1


def test_command_notify_sends(celery: Callable[..., Result], db: Connection) -> None:
    """Durable by default; raw if it is asked for."""
    db.execute("listen orders")
    sent = celery("notify", "orders", '{"note": "it\'s %s"}', "--key", "k")
    assert (sent.exit_code, sent.stdout, sent.stderr) == (0, "", "")
    ((_, channel, key, payload),) = taken(db)
    assert (channel, key, payload) == ("orders", "k", {"note": "it's %s"})
    assert celery("notify", "orders", '{"note": "it\'s %s"}', "--raw").exit_code == 0
    (heard,) = db.notifies(timeout=30, stop_after=1)
    assert json.loads(heard.payload) == {"note": "it's %s"}
    assert taken(db) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["orders", "{"], "the payload is not JSON"),
        (["orders", "NaN"], "the payload cannot be sent as JSON"),
        (["orders", '"\\u0000"'], "NUL"),
        (["x" * 64, "1"], "at most 63 bytes"),
        (["orders", "1", "--raw", "--key", "k"], "a raw notification has no key"),
        (["orders", json.dumps("x" * 8_000), "--raw"], "Postgres takes at most 7999"),
    ],
)
def test_command_notify_refuses_an_unsuitable_payload(
    words: list[str], reason: str, celery: Callable[..., Result], db: Connection
) -> None:
    """Has a clear line, and exit code 1."""
    result = celery("notify", *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1
    assert taken(db) == []


COMMANDS = [["notify", "c", "1"], ["notifications", "list"], ["notifications", "retry", "--all"], ["watches"]]


@pytest.mark.parametrize("words", COMMANDS)
def test_absent_database_is_exit_code_69(words: list[str], celery: Callable[..., Result]) -> None:
    """And a line that says where it has looked."""
    result = celery(*words, url="postgresql://127.0.0.1:1/x")
    assert (result.exit_code, result.stdout) == (69, "")
    assert "cannot ask x on 127.0.0.1" in result.stderr


def test_unanswering_database_is_exit_code_69(
    celery: Callable[..., Result], db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is given up, and is as one that is away."""
    monkeypatch.setattr(asking, "PATIENCE", 0.3)
    with db.transaction():
        db.execute("lock table pgleader.elections")
        result = celery("status")
    assert (result.exit_code, result.stdout) == (69, "")
    assert "the server did not answer in time" in result.stderr


def test_role_without_rights_is_exit_code_77(celery: Callable[..., Result], db: Connection, postgres: Any) -> None:
    """Exit code 77; the rights that `migrate --role` grants are enough."""
    db.execute(ORDERS)
    name = db.info.dbname + "_role"
    role = sql.Identifier(name)
    db.execute(sql.SQL("create role {} login").format(role))
    url = postgres.url(db.info.dbname, name)
    try:
        for words in (["notify", "c", "1"], ["notifications", "list"], ["watch", "orders", "--channel", "c"]):
            result = celery(*words, url=url)
            assert (result.exit_code, result.stdout) == (77, ""), result
        db.execute(schema.grants(name))
        for words in (["notify", "c", "1"], ["notifications", "list"], ["notifications", "retry", "--all"]):
            assert celery(*words, url=url).exit_code == 0
    finally:
        db.execute(sql.SQL("drop owned by {0}; drop role {0}").format(role))
