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

from celery_pgleader.cli.commands import OPERATORS_COMMANDS, json_option
from celery_pgleader.worker import remote  # noqa: F401 - has the command line know of its commands

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
    CeleryOption(
        ["--pgleader-priority"],
        help_group=HELP_GROUP,
        help="Of two workers the one with the higher priority is preferred as the leader; 0 never leads. [1]",
    ),
]


def _add_worker_options() -> None:
    known = {param.name for param in worker_command.params}
    worker_command.params.extend(option for option in WORKER_OPTIONS if option.name not in known)


def _on_worker_init(sender: Any, **_: Any) -> None:
    from celery_pgleader.worker.install import add_steps  # noqa: PLC0415 - only a worker needs it

    add_steps(sender.app)


def _on_beat_init(sender: Any, **_: Any) -> None:
    from celery_pgleader.worker.other_senders import look_from_beat  # noqa: PLC0415 - only a beat needs it

    look_from_beat(sender)


_add_worker_options()
signals.worker_init.connect(_on_worker_init, weak=False, dispatch_uid="celery_pgleader.cli.plugin")
signals.beat_init.connect(_on_beat_init, weak=False, dispatch_uid="celery_pgleader.cli.plugin")


class Commands(click.Group):
    """Our commands. What a terminal passes on need not be Unicode, and Postgres takes nothing else."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except UnicodeEncodeError as error:
            raise click.ClickException(str(error)) from error


@click.group(name="pgleader", cls=Commands)
def pgleader() -> None:
    """Ask about the election, steer it, and prepare its database."""


@pgleader.command(cls=CeleryCommand)
@click.option("--sql", "as_sql", is_flag=True, help="Print what is to be run, for a DBA, and change nothing.")
@click.option("--role", help="Also grant this role what workers need.")
@json_option
@click.pass_context
@handle_preload_options
def migrate(ctx: click.Context, as_json: bool, as_sql: bool, role: str | None) -> None:
    """Bring the schema `pgleader` up to date.

    Workers do so themselves when they start, if their role may. Exits with 69 where the database cannot be asked, and
    with 77 where the role may not.
    """
    from celery_pgleader.cli.migrate import run_migrate  # noqa: PLC0415 - psycopg only where it is used

    run_migrate(ctx.obj.app, as_sql=as_sql, role=role, as_json=as_json)


@pgleader.group()
def notifications() -> None:
    """Durable notifications that wait, and dead letters."""


def _which(command: Any) -> Any:
    """Add the options that say which dead letters are meant."""
    command = click.argument("ids", nargs=-1, type=int)(command)
    command = click.option("--channel", help="All of this channel.")(command)
    return click.option("--all", "everything", is_flag=True, help="All of them.")(command)


@notifications.command("list", cls=CeleryCommand)
@json_option
@click.pass_context
@handle_preload_options
def list_notifications(ctx: click.Context, as_json: bool) -> None:
    """Show how many wait in each channel, and the oldest hundred dead letters."""
    from celery_pgleader.cli.notifications import show_notifications  # noqa: PLC0415 - psycopg only where it is used

    show_notifications(ctx.obj.app, as_json=as_json)


@notifications.command(cls=CeleryCommand)
@_which
@json_option
@click.pass_context
@handle_preload_options
def retry(ctx: click.Context, as_json: bool, ids: tuple[int, ...], channel: str | None, everything: bool) -> None:
    """Have dead letters dispatched after all, as if they had been sent now."""
    from celery_pgleader.cli.notifications import retry_dead  # noqa: PLC0415 - psycopg only where it is used

    retry_dead(ctx.obj.app, ids, channel, everything=everything, as_json=as_json)


@notifications.command(cls=CeleryCommand)
@_which
@json_option
@click.pass_context
@handle_preload_options
def drop(ctx: click.Context, as_json: bool, ids: tuple[int, ...], channel: str | None, everything: bool) -> None:
    """Throw dead letters away."""
    from celery_pgleader.cli.notifications import drop_dead  # noqa: PLC0415 - psycopg only where it is used

    drop_dead(ctx.obj.app, ids, channel, everything=everything, as_json=as_json)


@pgleader.command(cls=CeleryCommand)
@click.argument("channel")
@click.argument("payload")
@click.option("--key", help="Notifications with the same key are dispatched in order.")
@click.option("--durable/--raw", default=True, help="Durable: kept until it was dispatched. Raw: for who listens now.")
@json_option
@click.pass_context
@handle_preload_options
def notify(ctx: click.Context, as_json: bool, channel: str, payload: str, key: str | None, durable: bool) -> None:
    """Send a notification with a JSON payload."""
    from celery_pgleader.cli.notifications import send  # noqa: PLC0415 - psycopg only where it is used

    send(ctx.obj.app, channel, payload, key=key, durable=durable, as_json=as_json)


@pgleader.command(cls=CeleryCommand)
@click.argument("table")
@click.option("--channel", required=True, help="Where to send.")
@click.option("--on", "operations", default="insert,update,delete", help="Which changes. [insert,update,delete]")
@click.option("--columns", default="", help="Which columns to send, and whose change is an update. [all]")
@click.option("--when", help="An SQL condition on NEW and OLD, such as: new.total > 100")
@click.option("--per", type=click.Choice(["row", "statement"]), default="row", help="A notification for each. [row]")
@click.option("--sql", "as_sql", is_flag=True, help="Print what would be run, and change nothing.")
@json_option
@click.pass_context
@handle_preload_options
def watch(
    ctx: click.Context,
    as_json: bool,
    table: str,
    channel: str,
    operations: str,
    columns: str,
    when: str | None,
    per: str,
    as_sql: bool,
) -> None:
    """Have a table send a durable notification for each change."""
    from celery_pgleader.cli.notifications import set_watch  # noqa: PLC0415 - psycopg only where it is used
    from celery_pgleader.notifications.watches import Watch  # noqa: PLC0415

    wanted = Watch(table, channel, _words(operations), _words(columns), when, per)
    set_watch(ctx.obj.app, wanted, as_sql=as_sql, as_json=as_json)


@pgleader.command(cls=CeleryCommand)
@click.argument("table")
@click.option("--channel", required=True, help="The channel of the watch.")
@click.option("--sql", "as_sql", is_flag=True, help="Print what would be run, and change nothing.")
@json_option
@click.pass_context
@handle_preload_options
def unwatch(ctx: click.Context, as_json: bool, table: str, channel: str, as_sql: bool) -> None:
    """End a watch."""
    from celery_pgleader.cli.notifications import end_watch  # noqa: PLC0415 - psycopg only where it is used

    end_watch(ctx.obj.app, table, channel, as_sql=as_sql, as_json=as_json)


@pgleader.command(cls=CeleryCommand)
@json_option
@click.pass_context
@handle_preload_options
def watches(ctx: click.Context, as_json: bool) -> None:
    """Show what is watched."""
    from celery_pgleader.cli.notifications import show_watches  # noqa: PLC0415 - psycopg only where it is used

    show_watches(ctx.obj.app, as_json=as_json)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


for command in OPERATORS_COMMANDS:
    pgleader.add_command(command)
