"""`celery -A proj pgleader status`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click
from psycopg import Error

from celery_pgleader.config import Config
from celery_pgleader.election.observer import Seat, observe
from celery_pgleader.errors import ConfigurationError

EX_UNAVAILABLE = 69


def show_status(app: Any, *, as_json: bool) -> int:
    """Print who leads an app's election; return the exit code."""
    try:
        config = Config.from_app(app)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    try:
        seats = observe(config)
    except Error as error:
        click.echo(f"pgleader: cannot ask {config.database}: {str(error).strip().splitlines()[0]}", err=True)
        return EX_UNAVAILABLE
    leader = next((seat for seat in seats if seat.role == "leader"), None)
    successors = [seat for seat in seats if seat.role == "successor"]
    if as_json:
        facts = {
            "election": config.election,
            "leader": asdict(leader) if leader else None,
            "successors": [asdict(seat) for seat in successors],
        }
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo(f"election   {config.election}")
        click.echo(f"leader     {_describe(leader) if leader else 'nobody'}")
        for seat in successors:
            click.echo(f"successor  {_describe(seat)}")
    return 0 if leader else EX_UNAVAILABLE


def _describe(seat: Seat) -> str:
    since = f", connected since {seat.connected_at}" if seat.connected_at else ""
    return f"{seat.node} (backend {seat.backend_pid}{since})"
