"""`celery -A proj pgleader dashboard`, and what to say where its extra is missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import click

NEEDED = ("jinja2", "prometheus_client", "starlette", "uvicorn")


def run_dashboard(app: Any, bind: str, *, allow_actions: bool, token: str | None) -> None:
    """Serve the dashboard until it is interrupted."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"the dashboard needs {', '.join(missing)}: run `pip install 'celery-pgleader[dashboard]'`"
        )
    from celery_pgleader.dashboard.command import CannotServe, serve  # noqa: PLC0415 - the extra may be missing

    try:
        serve(
            app,
            bind,
            allow_actions=allow_actions,
            token=token,
            say=click.echo,
            warn=lambda words: click.echo(f"Warning: {words}", err=True),
        )
    except CannotServe as error:
        raise click.ClickException(str(error)) from error
