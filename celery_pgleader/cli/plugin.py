"""What `celery` loads at every start, through the entry point `celery.commands`: it must cost next to nothing.

Importing this module adds the worker's options, and has every worker know the steps of the election. Celery imports it
after `celery.bin.worker` and before the app is found.
"""

from __future__ import annotations

from typing import Any

import click
from celery import signals
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options
from celery.bin.worker import worker as worker_command

HELP_GROUP = "PgLeader Options"

# None stands for "not given": the environment, the configuration and the defaults come after.
WORKER_OPTIONS = [
    CeleryOption(
        ["--pgleader/--no-pgleader"],
        default=None,
        help_group=HELP_GROUP,
        help="Take part in the election. Its leader runs the schedule, in place of -B.",
    ),
    CeleryOption(
        ["--pgleader-database-url"],
        help_group=HELP_GROUP,
        help="libpq URL of the database that holds the election. Prefer the setting or PGLEADER_DATABASE_URL:"
        " a command line can be read by others.",
    ),
    CeleryOption(["--pgleader-election"], help_group=HELP_GROUP, help="Name of the election. Default: the app's name."),
    CeleryOption(["--pgleader-lock"], help_group=HELP_GROUP, help="An explicit bigint lock key, for mixed fleets."),
    CeleryOption(
        ["--pgleader-ttl"], help_group=HELP_GROUP, help="Seconds without renewal after which a leader is out. [5]"
    ),
    CeleryOption(
        ["--pgleader-poll-interval"],
        help_group=HELP_GROUP,
        help="Seconds between a follower's attempts to become a successor. [10]",
    ),
]


def _add_worker_options() -> None:
    known = {param.name for param in worker_command.params}
    worker_command.params.extend(option for option in WORKER_OPTIONS if option.name not in known)


def _on_worker_init(sender: Any, **_: Any) -> None:
    from celery_pgleader.worker.install import add_steps  # noqa: PLC0415 - only a worker needs it

    add_steps(sender.app)


_add_worker_options()
signals.worker_init.connect(_on_worker_init, weak=False, dispatch_uid="celery_pgleader.cli.plugin")


@click.group(name="pgleader")
def pgleader() -> None:
    """Ask about the election, and prepare its database."""


@pgleader.command(cls=CeleryCommand)
@click.option("--json", "-j", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
@handle_preload_options
def status(ctx: click.Context, as_json: bool) -> None:  # noqa: FBT001 - Click passes options by name
    """Show who leads and who is next.

    Asks Postgres, so it works while the broker or all workers are away. Exits with 69 where nobody leads or the
    database cannot be asked.
    """
    from celery_pgleader.cli.status import show_status  # noqa: PLC0415 - psycopg only where it is used

    ctx.exit(show_status(ctx.obj.app, as_json=as_json))


@pgleader.command(cls=CeleryCommand)
@click.option("--sql", "as_sql", is_flag=True, help="Print what is to be run, for a DBA, and change nothing.")
@click.option("--role", help="Also grant this role what workers need.")
@click.pass_context
@handle_preload_options
def migrate(ctx: click.Context, as_sql: bool, role: str | None) -> None:  # noqa: FBT001 - Click passes options by name
    """Bring the schema `pgleader` up to date.

    Workers do so themselves when they start, if their role may. Exits with 69 where the database cannot be asked, and
    with 77 where the role may not.
    """
    from celery_pgleader.cli.migrate import run_migrate  # noqa: PLC0415 - psycopg only where it is used

    ctx.exit(run_migrate(ctx.obj.app, as_sql=as_sql, role=role))
