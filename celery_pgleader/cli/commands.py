"""The commands for operators, as `celery` loads them at every start: what they do is imported when they are run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from celery.bin.base import CeleryCommand, handle_preload_options

Function = TypeVar("Function", bound=Callable[..., Any])

OPERATORS_COMMANDS: list[click.Command] = []

json_option = click.option("--json", "-j", "as_json", is_flag=True, help="Print JSON.")
node = click.argument("node")
entry = click.argument("entry")


def command(name: str, *, as_json: bool = True) -> Callable[[Function], click.Command]:
    """Make a command; one that can also print JSON, unless it is said not to."""

    def make(function: Function) -> click.Command:
        function = json_option(function) if as_json else function
        made = click.command(name, cls=CeleryCommand)(click.pass_context(handle_preload_options(function)))
        OPERATORS_COMMANDS.append(made)
        return made

    return make


@command("status")
@click.option("--watch", "-w", is_flag=True, help="Show it again every second, until interrupted.")
def status(ctx: click.Context, as_json: bool, watch: bool) -> None:
    """Show who leads, who is next, and how the schedule is doing.

    Asks Postgres, so it works while the broker or all workers are away. Exits with 69 where nobody leads or the
    database cannot be asked.
    """
    from celery_pgleader.cli.status import show_status, watch_status  # noqa: PLC0415 - psycopg only where it is used

    if watch:
        watch_status(ctx.obj.app, as_json=as_json)
    else:
        ctx.exit(show_status(ctx.obj.app, as_json=as_json))


@command("history")
@click.option("--limit", "-n", default=20, show_default=True, help="So many terms, from the latest on.")
def history(ctx: click.Context, as_json: bool, limit: int) -> None:
    """Show who led when, how each term ended, and for how long nobody led then."""
    from celery_pgleader.cli.status import show_history  # noqa: PLC0415 - psycopg only where it is used

    show_history(ctx.obj.app, as_json=as_json, limit=limit)


@command("resign")
@click.option("--to", metavar="NODE", help="Who is to lead. [who is next]")
def resign(ctx: click.Context, as_json: bool, to: str | None) -> None:
    """Have the leader hand over now, and wait until another leads.

    Exits with 69 where nobody leads, or where NODE is not in line for the lock in time; the leader stays then.
    """
    from celery_pgleader.cli import orders  # noqa: PLC0415 - psycopg only where it is used

    orders.resign(ctx.obj.app, to, as_json=as_json)


@command("switchover")
@click.option("--at", metavar="TIME", help="When, such as 22:00 or 2026-11-24T22:00+01:00.")
@click.option("--to", metavar="NODE", help="Who is to lead. [who is next then]")
@click.option("--cancel", is_flag=True, help="Plan none any more.")
def switchover(ctx: click.Context, as_json: bool, at: str | None, to: str | None, cancel: bool) -> None:
    """Have whoever leads at a time hand over then.

    Times without a zone are in the time zone of the app.
    """
    from celery_pgleader.cli import orders  # noqa: PLC0415 - psycopg only where it is used

    orders.switch_over(ctx.obj.app, at, to, cancel=cancel, as_json=as_json)


@command("pause")
@click.option("--election", is_flag=True, help="Hold the election instead: who leads goes on, nobody is elected.")
def pause(ctx: click.Context, as_json: bool, election: bool) -> None:
    """Pause the schedule: its slots are skipped, and the election goes on."""
    from celery_pgleader.cli import orders  # noqa: PLC0415 - psycopg only where it is used

    orders.pause(ctx.obj.app, election=election, as_json=as_json)


@command("resume")
@click.option("--schedule", is_flag=True, help="The schedule only.")
@click.option("--election", is_flag=True, help="The election only.")
def resume(ctx: click.Context, as_json: bool, schedule: bool, election: bool) -> None:
    """End what `pause` has begun."""
    from celery_pgleader.cli import orders  # noqa: PLC0415 - psycopg only where it is used

    orders.resume(ctx.obj.app, election=election, schedule=schedule, as_json=as_json)


@command("cordon")
@node
def cordon(ctx: click.Context, as_json: bool, node: str) -> None:
    """Have a node lead no more; if it does now, it hands over."""
    from celery_pgleader.cli import orders  # noqa: PLC0415 - psycopg only where it is used

    orders.cordon(ctx.obj.app, node, as_json=as_json)


@command("uncordon")
@node
def uncordon(ctx: click.Context, as_json: bool, node: str) -> None:
    """Let a node lead again."""
    from celery_pgleader.cli import orders  # noqa: PLC0415 - psycopg only where it is used

    orders.uncordon(ctx.obj.app, node, as_json=as_json)


@command("pause-entry")
@entry
def pause_entry(ctx: click.Context, as_json: bool, entry: str) -> None:
    """Pause one entry of the schedule: its slots are skipped."""
    from celery_pgleader.cli import orders  # noqa: PLC0415 - psycopg only where it is used

    orders.pause_entry(ctx.obj.app, entry, as_json=as_json)


@command("resume-entry")
@entry
def resume_entry(ctx: click.Context, as_json: bool, entry: str) -> None:
    """Have a paused entry's slots run again."""
    from celery_pgleader.cli import orders  # noqa: PLC0415 - psycopg only where it is used

    orders.resume_entry(ctx.obj.app, entry, as_json=as_json)


@command("run-now")
@entry
def run_now(ctx: click.Context, as_json: bool, entry: str) -> None:
    """Have an entry's task sent now, by the leader, beside its schedule.

    Also while the entry, or the schedule, is paused. If nobody leads, it is sent by who leads next.
    """
    from celery_pgleader.cli import orders  # noqa: PLC0415 - psycopg only where it is used

    orders.run_now(ctx.obj.app, entry, as_json=as_json)


@command("schedule")
def schedule(ctx: click.Context, as_json: bool) -> None:
    """Show the schedule: each entry's next slot, what became of its last one, and its policy."""
    from celery_pgleader.cli.schedule import show_schedule  # noqa: PLC0415 - psycopg only where it is used

    show_schedule(ctx.obj.app, as_json=as_json)


@command("explain")
@entry
@click.option("--at", metavar="TIME", help="When, such as 10:00 or 2026-11-24T10:00+01:00. [its latest slot]")
def explain(ctx: click.Context, as_json: bool, entry: str, at: str | None) -> None:
    """Tell why an entry was, or was not, run at a time.

    Times without a zone are in the time zone of the app, and a time without seconds stands for that minute. Exits with
    1 if no leader has had such an entry.
    """
    from celery_pgleader.cli.schedule import show_explanation  # noqa: PLC0415 - psycopg only where it is used

    ctx.exit(show_explanation(ctx.obj.app, entry, at, as_json=as_json))


@command("check")
@click.option("--live", is_flag=True, help="A worker takes part and, if it leads, its beat has not stalled.")
@click.option("--node", metavar="NODE", help="Which worker. [celery@<this host>]")
@click.option("--leader-exists", is_flag=True, help="Somebody leads.")
@click.option("--max-lateness", metavar="SECONDS", type=float, help="The schedule is no later than that.")
def check(
    ctx: click.Context,
    as_json: bool,
    live: bool,
    node: str | None,
    leader_exists: bool,
    max_lateness: float | None,
) -> None:
    """Check something, for Kubernetes, Nagios and their like.

    Exits with 0 if all that is asked is so, with 2 if not, and with 69 where the database cannot be asked; --live alone
    passes then, since a worker is none the better for being restarted.
    """
    from celery_pgleader.cli.check import run_check  # noqa: PLC0415 - psycopg only where it is used

    ctx.exit(
        run_check(
            ctx.obj.app, live=live, leader_exists=leader_exists, max_lateness=max_lateness, node=node, as_json=as_json
        )
    )


@command("doctor")
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Look for what would go wrong, before it does, and tell what to do about it.

    Exits with 0 only if all is well, with 1 if something is found, and with 69 where the database cannot be asked.
    """
    from celery_pgleader.cli.doctor import run_doctor  # noqa: PLC0415 - psycopg only where it is used

    ctx.exit(run_doctor(ctx.obj.app, as_json=as_json))


@command("dashboard", as_json=False)
@click.option("--bind", metavar="ADDRESS:PORT", default="127.0.0.1:5556", show_default=True, help="Where to listen.")
@click.option(
    "--allow-actions", is_flag=True, help="Let those who have the token hand over, pause, resume and run now."
)
@click.option(
    "--token",
    envvar="PGLEADER_DASHBOARD_TOKEN",
    help="What they have to give. Prefer PGLEADER_DASHBOARD_TOKEN: a command line can be read by others.",
)
def dashboard(ctx: click.Context, bind: str, allow_actions: bool, token: str | None) -> None:
    """Serve a page that shows the election live, and metrics for Prometheus at /metrics.

    Needs the extra: pip install 'celery-pgleader[dashboard]'.
    """
    from celery_pgleader.cli.dashboard import run_dashboard  # noqa: PLC0415 - what it needs, only where it is used

    run_dashboard(ctx.obj.app, bind, allow_actions=allow_actions, token=token)
