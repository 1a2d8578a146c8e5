"""`celery -A proj pgleader migrate`."""

from __future__ import annotations

from typing import Any

import click
from psycopg import Error
from psycopg.errors import InsufficientPrivilege

from celery_pgleader.config import Config
from celery_pgleader.errors import ConfigurationError
from celery_pgleader.postgres import open_session
from celery_pgleader.store import Schema
from celery_pgleader.store.schema import grants, script

EX_UNAVAILABLE, EX_NOPERM = 69, 77


def run_migrate(app: Any, *, as_sql: bool, role: str | None) -> int:
    """Bring the schema up to date, or print what would; return the exit code."""
    if as_sql:
        for part in script(role):
            click.echo(part, nl=False)
        return 0
    try:
        config = Config.from_app(app)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    try:
        with open_session(config.database_url, "pgleader migrate", unresponsive_after=config.ttl) as session:
            steps = Schema(session).migrate()
            if role:
                session.execute(grants(role))
    except InsufficientPrivilege as error:
        click.echo(f"pgleader: this role may not change {config.database}: {_first_line(error)}", err=True)
        return EX_NOPERM
    except Error as error:
        click.echo(f"pgleader: cannot ask {config.database}: {_first_line(error)}", err=True)
        return EX_UNAVAILABLE
    for step in steps:
        click.echo(f"applied {step.name}")
    click.echo("the schema pgleader is up to date")
    return 0


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
