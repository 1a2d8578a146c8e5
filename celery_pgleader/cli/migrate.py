"""`celery -A proj pgleader migrate`."""

from __future__ import annotations

import math
from typing import Any

import click

from celery_pgleader.cli.database import asking
from celery_pgleader.cli.output import say
from celery_pgleader.store import Schema
from celery_pgleader.store.schema import Migration, grants, migrations, script


def run_migrate(app: Any, *, as_sql: bool, role: str | None, as_json: bool) -> None:
    """Bring the schema up to date, or print what would."""
    if as_sql:
        text = "".join(script(_missing(app), role))
        say({"sql": text}, text.rstrip("\n"), as_json=as_json)
        return
    # A step may take as long as its table is large.
    with asking(app, patience=math.inf) as session:
        steps = Schema(session).migrate()
        if role:
            session.execute(grants(role))
    words = [*(f"applied {step.name}" for step in steps), "the schema pgleader is up to date"]
    say({"applied": [step.name for step in steps]}, "\n".join(words), as_json=as_json)


def _missing(app: Any) -> list[Migration]:
    """Return the steps that the database lacks, or all if it cannot be asked."""
    try:
        with asking(app) as session:
            return Schema(session).pending()
    except click.ClickException as error:
        click.echo(f"pgleader: {error.message}; these are all steps, for a database without any", err=True)
        return migrations()
