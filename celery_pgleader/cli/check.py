"""`celery -A proj pgleader check`: for Kubernetes, Nagios and their like."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import click
from celery.utils.nodenames import default_nodename

from celery_pgleader.cli.database import Unavailable, asking, config_of
from celery_pgleader.cli.output import show_json
from celery_pgleader.operators.overview import Overview, look
from celery_pgleader.operators.words import duration

EX_NOT_SO = 2
# A leader that has not come to a slot for so many seconds has stalled: half of what the watchdog waits.
STALLED_AFTER = 15.0


@dataclass(frozen=True)
class Result:
    """What was found out.

    Attributes:
        check: of what was asked.
        ok: whether it is so.
        words: what is found, in words.

    """

    check: str
    ok: bool
    words: str


def run_check(
    app: Any, *, live: bool, leader_exists: bool, max_lateness: float | None, node: str | None, as_json: bool
) -> int:
    """Print what is found; return the exit code."""
    if not (live or leader_exists or max_lateness is not None):
        raise click.UsageError("say what to check: --live, --leader-exists, --max-lateness SECONDS")
    config = config_of(app)
    results: list[Result] = []
    try:
        with asking(app, pooled=True) as session:
            overview = look(config, session)
    except Unavailable as away:
        if leader_exists or max_lateness is not None:
            raise
        # A worker is none the better for being restarted while its database is away.
        results.append(Result("live", ok=True, words=f"cannot tell, and passes: {away.message}"))
    else:
        if live:
            results.append(_live(overview, default_nodename(node or "")))
        if leader_exists:
            words = f"{overview.leading_node} leads" if overview.leader else "nobody leads"
            results.append(Result("leader-exists", ok=overview.leader is not None, words=words))
        if max_lateness is not None:
            results.append(_lateness(overview, max_lateness))
    if as_json:
        show_json([asdict(result) for result in results])
    else:
        for result in results:
            click.echo(f"{'OK' if result.ok else 'CRITICAL'} {result.check}: {result.words}")
    return 0 if all(result.ok for result in results) else EX_NOT_SO


def _live(overview: Overview, node: str) -> Result:
    there = [found for found in overview.nodes if found.node == node]
    if not there:
        return Result("live", ok=False, words=f"{node} takes no part in the election")
    if overview.leading_node == node and overview.lateness > STALLED_AFTER:
        words = f"{node} leads, and has not come to a slot that was due {duration(overview.lateness)} ago"
        return Result("live", ok=False, words=words)
    return Result("live", ok=True, words=f"{node} takes part{' and leads' if overview.leading_node == node else ''}")


def _lateness(overview: Overview, most: float) -> Result:
    if overview.schema is None:
        return Result("max-lateness", ok=False, words="there is no ledger, or it may not be seen")
    late = max(overview.lateness, overview.unpublished)
    return Result(
        "max-lateness", ok=late <= most, words=f"the schedule is late by {duration(late)}" if late else "on time"
    )
