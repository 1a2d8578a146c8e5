"""The commands by which operators steer the election and the schedule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import click

from celery_pgleader.cli.database import Unavailable, asking, config_of
from celery_pgleader.cli.output import say
from celery_pgleader.cli.times import read_time
from celery_pgleader.config import Config
from celery_pgleader.operators import orders
from celery_pgleader.operators.orders import Done, NotDone, Refused
from celery_pgleader.operators.words import moment
from celery_pgleader.postgres import Session


def resign(app: Any, to: str | None, *, as_json: bool) -> None:
    """Have the leader hand over, and wait until it has."""
    with _ordering(app) as (config, session):
        done = orders.resign(config, session, to)
    _say(done, as_json=as_json)


def switch_over(app: Any, at: str | None, to: str | None, *, cancel: bool, as_json: bool) -> None:
    """Have whoever leads at a time hand over then; or do so no more."""
    zone, now = app.timezone, datetime.now(timezone.utc)
    if cancel == (at is not None):
        raise click.UsageError("say when, with --at, or --cancel")
    with _ordering(app) as (config, session):
        if at is None:
            planned = orders.cancel_switchover(config, session)
            words = f"the switchover at {moment(planned, zone)} is cancelled" if planned else "none was planned"
            say({"cancelled": planned}, words, as_json=as_json)
            return
        time_, _ = read_time(at, now, zone)
        if time_ <= now:
            raise click.BadParameter(f"{moment(time_, zone)} has passed; `pgleader resign` hands over now")
        orders.plan_switchover(config, session, time_, to)
    words = f"whoever leads at {moment(time_, zone)} ({zone}) hands over{f' to {to}' if to else ''}"
    say({"at": time_, "to": to}, words, as_json=as_json)


def pause(app: Any, *, election: bool, as_json: bool) -> None:
    """Pause the schedule, or hold the election."""
    with _ordering(app) as (config, session):
        done = orders.pause(config, session, election=election)
    _say(done, as_json=as_json)


def resume(app: Any, *, election: bool, schedule: bool, as_json: bool) -> None:
    """End what `pause` has begun."""
    with _ordering(app) as (config, session):
        done = orders.resume(config, session, election=election, schedule=schedule)
    _say(done, as_json=as_json)


def cordon(app: Any, node: str, *, as_json: bool) -> None:
    """Have a node lead no more."""
    with _ordering(app) as (config, session):
        done = orders.cordon(config, session, node)
    _say(done, as_json=as_json)


def uncordon(app: Any, node: str, *, as_json: bool) -> None:
    """Let a node lead again."""
    with _ordering(app) as (config, session):
        done = orders.uncordon(config, session, node)
    _say(done, as_json=as_json)


def pause_entry(app: Any, entry: str, *, as_json: bool) -> None:
    """Have an entry's slots skipped."""
    with _ordering(app) as (config, session):
        done = orders.pause_entry(config, session, entry)
    _say(done, as_json=as_json)


def resume_entry(app: Any, entry: str, *, as_json: bool) -> None:
    """Have an entry's slots run again."""
    with _ordering(app) as (config, session):
        done = orders.resume_entry(config, session, entry)
    _say(done, as_json=as_json)


def run_now(app: Any, entry: str, *, as_json: bool) -> None:
    """Have an entry's task sent now, by the leader."""
    with _ordering(app) as (config, session):
        done = orders.run_now(config, session, entry)
    _say(done, as_json=as_json)


@contextmanager
def _ordering(app: Any) -> Iterator[tuple[Config, Session]]:
    config = config_of(app)
    try:
        with asking(app, pooled=True) as session:
            yield config, session
    except NotDone as refused:
        raise Unavailable(str(refused)) from refused
    except Refused as refused:
        raise click.ClickException(str(refused)) from refused


def _say(done: Done, *, as_json: bool) -> None:
    say(done.facts, done.words, as_json=as_json)
