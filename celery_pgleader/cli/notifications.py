"""`celery -A proj pgleader notifications`, `notify`, `watch`, `unwatch` and `watches`."""

from __future__ import annotations

import json
from typing import Any

import click
from psycopg.types.json import set_json_loads

from celery_pgleader.cli.database import asking
from celery_pgleader.cli.output import say, show_json
from celery_pgleader.errors import NotificationError
from celery_pgleader.notifications import watches
from celery_pgleader.notifications.sending import notify
from celery_pgleader.notifications.watches import Watch
from celery_pgleader.store import sql as statements

SHOWN = 100


def show_notifications(app: Any, *, as_json: bool) -> None:
    """Print what waits, and the dead letters."""
    with asking(app) as session:
        set_json_loads(_payload, session)
        backlog = session.execute(statements.BACKLOG).fetchall()
        dead = session.execute(statements.DEAD_LETTERS, {"ids": None, "channel": None, "limit": SHOWN}).fetchall()
    waiting = [{"channel": c, "waiting": n, "oldest_seconds": round(age, 1)} for c, n, _, age in backlog]
    letters = [
        {
            "id": number,
            "channel": channel,
            "key": key,
            "sent_at": sent_at.isoformat(),
            "died_at": died_at.isoformat(),
            "attempts": attempts,
            "error": error,
            "payload": payload,
        }
        for number, channel, key, sent_at, died_at, attempts, error, payload in dead
    ]
    if as_json:
        show_json({"waiting": waiting, "dead": letters})
        return
    for channel in waiting:
        click.echo("waiting  {channel}: {waiting}, the oldest for {oldest_seconds:g} s".format(**channel))
    for letter in letters:
        click.echo("dead     {id} on {channel}, {died_at}, {attempts} attempts: {error}".format(**letter))
    if not waiting and not letters:
        click.echo("nothing waits, and there are no dead letters")


def retry_dead(app: Any, ids: tuple[int, ...], channel: str | None, *, everything: bool, as_json: bool) -> None:
    """Have dead letters dispatched after all."""
    with asking(app) as session:
        row = session.execute(statements.RETRY_DEAD, _which(ids, channel, everything=everything)).fetchone()
    retried = row[0] if row else 0
    say({"retried": retried}, f"{retried} go to the end of the line", as_json=as_json)


def drop_dead(app: Any, ids: tuple[int, ...], channel: str | None, *, everything: bool, as_json: bool) -> None:
    """Throw dead letters away."""
    with asking(app) as session:
        dropped = session.execute(statements.DROP_DEAD, _which(ids, channel, everything=everything)).fetchall()
    say({"dropped": len(dropped)}, f"{len(dropped)} dropped", as_json=as_json)


def send(app: Any, channel: str, payload: str, *, key: str | None, durable: bool, as_json: bool) -> None:
    """Send a notification."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"the payload is not JSON: {error}") from error
    with asking(app, pooled=True) as session:
        try:
            notify(channel, value, key=key, durable=durable, connection=session)
        except NotificationError as error:
            raise click.ClickException(str(error)) from error
    if as_json:
        show_json({"channel": channel, "key": key, "durable": durable})


def set_watch(app: Any, watch: Watch, *, as_sql: bool, as_json: bool) -> None:
    """Watch a table, or print how."""
    with asking(app) as session:
        script = watches.script_of(session, watch)
        if as_sql:
            text = script.as_string(session)
            say({"sql": text}, text, as_json=as_json)
            return
        with session.transaction():
            session.execute(script)
    facts = {"table": watch.table, "channel": watch.channel, "operations": watch.operations}
    words = f"{watch.table} is watched: {', '.join(watch.operations)} to channel {watch.channel}"
    say(facts, words, as_json=as_json)


def end_watch(app: Any, table: str, channel: str, *, as_sql: bool, as_json: bool) -> None:
    """Watch a table no more, or print how."""
    with asking(app) as session:
        script = watches.unwatch_script(session, table, channel)
        if as_sql:
            text = script.as_string(session)
            say({"sql": text}, text, as_json=as_json)
            return
        with session.transaction():
            session.execute(script)
    say({"table": table, "channel": channel}, f"{table} is watched no more for channel {channel}", as_json=as_json)


def show_watches(app: Any, *, as_json: bool) -> None:
    """Print what is watched."""
    with asking(app) as session:
        found = [watches.describe(watch) for watch in watches.watches(session)]
    if as_json:
        show_json(found)
        return
    for watch in found:
        click.echo("{table}: {operation}, per {per}, to channel {channel}".format(**watch))
    if not found:
        click.echo("no table is watched")


def _which(ids: tuple[int, ...], channel: str | None, *, everything: bool) -> dict[str, Any]:
    if not ids and channel is None and not everything:
        raise click.UsageError("say which: ids, --channel, or --all")
    return {"ids": list(ids) or None, "channel": channel}


def _payload(text: str | bytes) -> Any:
    """Return a payload's value, or its text: one that Python cannot read is a dead letter for just that."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text if isinstance(text, str) else text.decode()
