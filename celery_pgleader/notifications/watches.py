"""Table watches: triggers that send a durable notification for each change of a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from celery_pgleader.channels import check_channel
from celery_pgleader.errors import ConfigurationError, refused, shown

OPERATIONS = ("insert", "update", "delete")
# Types whose `=` there is not, or is something else.
INCOMPARABLE = {"json", "xml", "point", "line", "lseg", "box", "path", "polygon", "circle"}
# What a trigger's comment begins with; the rest is JSON.
MARK = "pgleader watch "

COLUMNS = """
select a.attname, coalesce(b.typname, t.typname), coalesce(i.indisprimary, false)
  from pg_attribute a
  join pg_type t on t.oid = a.atttypid
  left join pg_type b on b.oid = t.typbasetype
  left join pg_index i on i.indrelid = a.attrelid and i.indisprimary and a.attnum = any(i.indkey)
 where a.attrelid = %(table)s::regclass and a.attnum > 0 and not a.attisdropped
 order by a.attnum
"""

TABLE = """
select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.oid = to_regclass(%(table)s) and c.relkind in ('r', 'p')
"""

WATCHES = """
select n.nspname, c.relname, t.tgname, p.proname, obj_description(t.oid, 'pg_trigger')
  from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
  join pg_proc p on p.oid = t.tgfoid
 where not t.tgisinternal and obj_description(t.oid, 'pg_trigger') like %(mark)s || '%%'
 order by 1, 2, 3
"""

PER_ROW = sql.SQL("""
create or replace function pgleader.{function}() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as {quote}
begin
    perform pgleader.notify(
        {channel},
        jsonb_build_object(
            'operation', lower(tg_op), 'schema', tg_table_schema, 'table', tg_table_name,
            'key', case when tg_op = 'DELETE' then {old_key} else {new_key} end,
            'new', case when tg_op <> 'DELETE' then {new} end,
            'old', case when tg_op <> 'INSERT' then {old} end),
        tg_table_schema || '.' || tg_table_name || ' '
            || case when tg_op = 'DELETE' then {old_key} else {new_key} end::text);
    return null;
end
{quote};
revoke execute on function pgleader.{function}() from public;
""")

PER_STATEMENT = sql.SQL("""
create or replace function pgleader.{function}() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as {quote}
declare
    changed jsonb;
begin
    if tg_op = 'INSERT' then
        select jsonb_agg(jsonb_build_object('key', {new_key}, 'new', {new}, 'old', null)) into changed
          from new_rows n;
    elsif tg_op = 'DELETE' then
        select jsonb_agg(jsonb_build_object('key', {old_key}, 'new', null, 'old', {old})) into changed
          from old_rows o;
    else
        -- Where the key itself was changed, it cannot be told which row has become which.
        select jsonb_agg(jsonb_build_object(
                   'key', coalesce(n.row_key, o.row_key),
                   'new', n.row_new, 'old', o.row_old)) into changed
          from (select {new_key} as row_key, {new} as row_new from new_rows n) n
          full join (select {old_key} as row_key, {old} as row_old from old_rows o) o
                 on n.row_key = o.row_key;
    end if;
    if changed is not null then
        perform pgleader.notify(
            {channel},
            jsonb_build_object('operation', lower(tg_op), 'schema', tg_table_schema, 'table', tg_table_name,
                               'rows', changed),
            tg_table_schema || '.' || tg_table_name);
    end if;
    return null;
end
{quote};
revoke execute on function pgleader.{function}() from public;
""")

TRIGGER_PER_ROW = sql.SQL("""
create trigger {trigger} after {operation} on {table}
    for each row {condition} execute function pgleader.{function}();
comment on trigger {trigger} on {table} is {comment};
""")

TRIGGER_PER_STATEMENT = sql.SQL("""
create trigger {trigger} after {operation} on {table}
    referencing {referencing} for each statement execute function pgleader.{function}();
comment on trigger {trigger} on {table} is {comment};
""")

REFERENCING = {
    "insert": sql.SQL("new table as new_rows"),
    "delete": sql.SQL("old table as old_rows"),
    "update": sql.SQL("new table as new_rows old table as old_rows"),
}

UNWATCH = sql.SQL("drop trigger {trigger} on {table};\n")
DROP_FUNCTION = sql.SQL("drop function if exists pgleader.{function}();\n")


@dataclass(frozen=True)
class Watch:
    """What is to be watched.

    Attributes:
        table: name of the table, as in SQL, with its schema if it is not on the search path.
        channel: where to send.
        operations: which of insert, update, delete.
        columns: those to send, and whose change counts as an update; by default all.
        when: an SQL condition on `new` and `old`, taken as it is; only per row.
        per: `row`, or `statement`.

    """

    table: str
    channel: str
    operations: tuple[str, ...] = OPERATIONS
    columns: tuple[str, ...] = ()
    when: str | None = None
    per: str = "row"


def script_of(connection: psycopg.Connection[TupleRow], watch: Watch) -> sql.Composed:
    """Return the SQL that sets a watch up.

    Raises:
        ConfigurationError: it cannot be; the message says why.

    """
    check_channel("--channel", watch.channel)
    if not watch.operations or set(watch.operations) - set(OPERATIONS):
        raise refused("--on", ",".join(watch.operations), f"must be of {', '.join(OPERATIONS)}")
    if watch.when and watch.per == "statement":
        raise ConfigurationError("--when: a condition is on rows, and cannot be combined with --per statement")
    schema, name = find_table(connection, watch.table)
    if any(_is_of(known, schema, name, watch.channel) for known in watches(connection)):
        raise ConfigurationError(
            f"table {schema}.{name} is watched for channel {shown(watch.channel)} already; end that with unwatch first"
        )
    columns, keys, awkward = _columns(connection, watch)
    identifiers = {
        "function": sql.Identifier(function_of(schema, name, watch.channel)),
        "table": sql.Identifier(schema, name),
        "channel": sql.Literal(watch.channel),
        "quote": sql.SQL(_quote([watch.channel, schema, name, *columns, *keys])),
    }
    # In a function, `new` and `old` are its variables, and nothing else can have these names.
    new, old = ("new", "old") if watch.per == "row" else ("n", "o")
    records = {"new": _record(new, columns), "old": _record(old, columns)}
    record_keys = {"new_key": _record(new, keys), "old_key": _record(old, keys)}
    body = PER_ROW if watch.per == "row" else PER_STATEMENT
    parts: list[sql.Composable] = [body.format(**identifiers, **records, **record_keys)]
    comment = MARK + json.dumps({"channel": watch.channel, "per": watch.per, "columns": list(watch.columns)})
    for operation in watch.operations:
        trigger = sql.Identifier(trigger_of(watch.channel, operation))
        common = {**identifiers, "trigger": trigger, "operation": sql.SQL(operation), "comment": sql.Literal(comment)}
        if watch.per == "row":
            parts.append(TRIGGER_PER_ROW.format(**common, condition=_condition(watch, operation, awkward)))
        else:
            parts.append(TRIGGER_PER_STATEMENT.format(**common, referencing=REFERENCING[operation]))
    return sql.SQL("").join(parts)


def unwatch_script(connection: psycopg.Connection[TupleRow], table: str, channel: str) -> sql.Composed:
    """Return the SQL that ends a watch.

    Raises:
        ConfigurationError: there is none.

    """
    schema, name = find_table(connection, table)
    found = [known for known in watches(connection) if _is_of(known, schema, name, channel)]
    if not found:
        raise ConfigurationError(f"table {schema}.{name} is not watched for channel {shown(channel)}")
    parts: list[sql.Composable] = [
        UNWATCH.format(trigger=sql.Identifier(trigger), table=sql.Identifier(schema, name))
        for _, _, trigger, _, _ in found
    ]
    parts += [DROP_FUNCTION.format(function=sql.Identifier(function)) for function in {w[3] for w in found}]
    return sql.SQL("").join(parts)


def watches(connection: psycopg.Connection[TupleRow]) -> list[tuple[str, str, str, str, str]]:
    """Return schema, table, trigger, function and comment of each watch's triggers."""
    return [
        (schema, table, trigger, function, comment)
        for schema, table, trigger, function, comment in connection.execute(WATCHES, {"mark": MARK})
    ]


def find_table(connection: psycopg.Connection[TupleRow], table: str) -> tuple[str, str]:
    """Return schema and name of a table.

    Raises:
        ConfigurationError: there is none.

    """
    try:
        row = connection.execute(TABLE, {"table": table}).fetchone()
    except (psycopg.errors.InvalidName, psycopg.errors.SyntaxError, psycopg.errors.FeatureNotSupported):
        row = None
    if row is None:
        raise ConfigurationError(f"{shown(table)}: there is no such table")
    return row[0], row[1]


def function_of(schema: str, table: str, channel: str) -> str:
    """Return the name of a watch's function; it does not grow with theirs."""
    digest = hashlib.blake2s(f"{schema}\n{table}\n{channel}".encode(), digest_size=8).hexdigest()
    return f"watch_{digest}"


def trigger_of(channel: str, operation: str) -> str:
    """Return the name of a trigger; channels that are alike at the beginning have different ones."""
    digest = hashlib.blake2s(channel.encode(), digest_size=4).hexdigest()
    return f"pgleader_{operation}_{digest}"


def describe(watch: tuple[str, str, str, str, str]) -> dict[str, object]:
    """Return what a trigger of a watch does."""
    schema, table, trigger, _, comment = watch
    return {"table": f"{schema}.{table}", "operation": trigger.split("_")[1], **json.loads(comment[len(MARK) :])}


def _columns(connection: psycopg.Connection[TupleRow], watch: Watch) -> tuple[list[str], list[str], set[str]]:
    """Return the columns to send, those of the primary key, and those whose values cannot be compared."""
    rows = connection.execute(COLUMNS, {"table": watch.table}).fetchall()
    keys = [name for name, _, is_key in rows if is_key]
    if not keys:
        raise ConfigurationError(f"table {watch.table} has no primary key, which tells its rows apart")
    known = [name for name, _, _ in rows]
    if missing := [name for name in watch.columns if name not in known]:
        raise ConfigurationError(f"--columns: table {watch.table} has no column {shown(missing[0])}")
    chosen = list(watch.columns) or known
    for name, kind, _ in rows:
        if name in chosen and kind == "bytea":
            raise ConfigurationError(
                f"column {name} of table {watch.table} is bytea, which JSON cannot hold: leave it out with --columns"
            )
    return chosen, keys, {name for name, kind, _ in rows if kind in INCOMPARABLE}


def _record(row: str, columns: Sequence[str]) -> sql.Composed:
    # In groups, since a function takes at most a hundred arguments.
    groups = [columns[start : start + 40] for start in range(0, len(columns), 40)]
    return sql.SQL(" || ").join(
        sql.SQL("jsonb_build_object({})").format(
            sql.SQL(", ").join(sql.SQL("{}, {}").format(sql.Literal(name), sql.Identifier(row, name)) for name in group)
        )
        for group in groups
    )


def _condition(watch: Watch, operation: str, awkward: Collection[str]) -> sql.Composable:
    conditions: list[sql.Composable] = []
    if operation == "update" and watch.columns:
        old, new = (
            sql.SQL(", ").join(
                sql.SQL("{}::text" if name in awkward else "{}").format(sql.Identifier(row, name))
                for name in watch.columns
            )
            for row in ("old", "new")
        )
        conditions.append(sql.SQL("({}) is distinct from ({})").format(old, new))
    if watch.when:
        # Written by whoever may create triggers on the table, and may do anything to it.
        conditions.append(sql.SQL("({})").format(sql.SQL(watch.when)))
    return sql.SQL("when ({})").format(sql.SQL(" and ").join(conditions)) if conditions else sql.SQL("")


def _is_of(known: tuple[str, str, str, str, str], schema: str, table: str, channel: str) -> bool:
    """Tell whether a trigger is that of a table and a channel."""
    return known[:2] == (schema, table) and json.loads(known[4][len(MARK) :])["channel"] == channel


def _quote(names: Sequence[str]) -> str:
    """Return what a function's body stands between: something that is not in it."""
    tag = "watch"
    while any(tag in name for name in names):
        tag += "_"
    return f"${tag}$"
