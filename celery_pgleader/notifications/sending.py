"""`notify`: sends a notification, durable or raw, from any Python program."""

from __future__ import annotations

import json
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from celery_pgleader.channels import check_channel
from celery_pgleader.config import Config
from celery_pgleader.errors import NotificationError
from celery_pgleader.notifications.notifier import NOTIFY as NOTIFY_RAW
from celery_pgleader.notifications.payload import encode
from celery_pgleader.postgres import open_session
from celery_pgleader.store.sql import NOTIFY

DEEPEST = 500


def notify(channel: str, payload: Any, *, key: str | None = None, durable: bool = True, connection: Any = None) -> None:
    """Send a notification to the tasks of a channel.

    A durable one is a row that is written in the transaction of `connection`: it is dispatched if, and only if, that is
    committed. A raw one reaches whoever listens when it is committed, or nobody.

    Args:
        channel: the channel's exact name.
        payload: a JSON value.
        key: durable notifications with the same channel and key are dispatched in order.
        durable: whether it is durable, or raw.
        connection: of psycopg or psycopg2, of Django, or of SQLAlchemy (a connection or a session), to the database
            that holds the election. By default one of its own is opened, to the current Celery app's
            `pgleader_database_url`, and committed.

    Raises:
        NotificationError: the payload is no JSON value that Postgres takes, or a raw one is too long, or has a key.
            Nothing was sent to the database.
        ConfigurationError: Postgres would not take the channel's name.

    """
    check_channel("channel", channel)
    if durable:
        statement, parameters = NOTIFY, {"channel": channel, "payload": encode_durable(payload), "key": _check_key(key)}
    else:
        if key is not None:
            raise NotificationError("a raw notification has no key; only durable ones are kept in order")
        statement, parameters = NOTIFY_RAW, {"channel": channel, "payload": encode(payload)}
    if _is_asynchronous(connection):
        raise TypeError(
            f"connection: {type(connection).__name__} is asynchronous; execute `select pgleader.notify(...)` with it"
        )
    deliver(connection, statement, parameters)


def deliver(connection: Any, statement: str, parameters: dict[str, Any]) -> None:
    """Execute a statement that sends a notification; without a connection, with one of its own."""
    if connection is not None:
        _execute(connection, statement, parameters)
        return
    config = _current_config()
    with open_session(config.database_url, "pgleader notify", unresponsive_after=config.ttl, pooled=True) as session:
        session.execute(statement, parameters)


def encode_durable(value: Any) -> str:
    """Return a value as JSON that `jsonb` takes.

    Raises:
        NotificationError: there is none.

    """
    try:
        payload = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        payload.encode()
    except UnicodeEncodeError:
        raise NotificationError("the payload holds a lone surrogate, which is not valid Unicode") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise NotificationError(f"the payload cannot be sent as JSON: {error}") from None
    # In JSON a backslash is never single but before an escape, so this is NUL's unless the backslash itself is escaped.
    if "\\u0000" in payload and "\\u0000" in payload.replace("\\\\", ""):
        raise NotificationError("the payload holds a NUL character, which Postgres does not take")
    if len(payload) > DEEPEST and _depth(value) > DEEPEST:
        raise NotificationError(f"the payload is nested deeper than {DEEPEST} levels")
    return payload


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        containers = [item for item in level if isinstance(item, dict | list | tuple)]
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
        depth += bool(containers)
    return depth


def _check_key(key: object) -> str | None:
    if key is None:
        return None
    if not isinstance(key, str) or "\0" in key:
        raise NotificationError(f"key = {key!r}: must be a string without NUL")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise NotificationError(f"key = {key!r}: must be valid Unicode") from None
    return key


def _current_config() -> Config:
    from celery import current_app  # noqa: PLC0415 - with a connection of one's own no app is needed

    return Config.from_app(current_app)


def _execute(connection: Any, statement: str, parameters: dict[str, Any]) -> None:
    if _is_of(connection, "sqlalchemy"):
        from sqlalchemy import text  # noqa: PLC0415 - whoever brings a connection of it has it

        for name in parameters:
            statement = statement.replace(f"%({name})s::jsonb", f"cast(:{name} as jsonb)")
            statement = statement.replace(f"%({name})s", f":{name}")
        connection.execute(text(statement), parameters)
    elif isinstance(connection, psycopg.Connection):
        # Whatever kind of cursors and rows it makes otherwise.
        with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
            cursor.execute(statement, parameters)
    elif hasattr(connection, "cursor"):
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
    else:
        raise TypeError(f"connection: must be of psycopg, psycopg2, Django or SQLAlchemy, not {type(connection)!r}")


def _is_of(connection: Any, package: str) -> bool:
    """Tell whether an object's class, or one that it is derived from, is a package's."""
    return any(cls.__module__.partition(".")[0] == package for cls in type(connection).__mro__)


def _is_asynchronous(connection: Any) -> bool:
    return (
        isinstance(connection, psycopg.AsyncConnection)
        or _is_of(connection, "asyncpg")
        or any(cls.__module__.startswith("sqlalchemy.ext.asyncio") for cls in type(connection).__mro__)
    )
