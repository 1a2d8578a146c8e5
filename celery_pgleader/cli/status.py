"""`celery -A proj pgleader status` and `history`."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import click

from celery_pgleader.cli.database import EX_UNAVAILABLE, Unavailable, asking, config_of
from celery_pgleader.cli.output import show_facts, show_json, show_table
from celery_pgleader.config import Config
from celery_pgleader.operators.history import PastTerm, history
from celery_pgleader.operators.overview import Overview, look
from celery_pgleader.operators.words import duration, moment, skew, time_of

WATCH_EVERY = 1.0


def show_status(app: Any, *, as_json: bool) -> int:
    """Print who leads an app's election, and all that is known of it; return the exit code."""
    config = config_of(app)
    with asking(app, pooled=True) as session:
        overview = look(config, session)
    _show(config, overview, as_json=as_json, app=app)
    return 0 if overview.leader else EX_UNAVAILABLE


def watch_status(app: Any, *, as_json: bool) -> None:
    """Print it again and again, until interrupted; a database that is away is waited for."""
    with suppress(KeyboardInterrupt):
        while True:
            click.clear()
            try:
                show_status(app, as_json=as_json)
            except Unavailable as away:
                away.show()
            threading.Event().wait(WATCH_EVERY)


def show_history(app: Any, *, as_json: bool, limit: int) -> None:
    """Print who led when, how each term ended, and for how long nobody led then."""
    config = config_of(app)
    with asking(app, pooled=True) as session:
        overview = look(config, session)
        terms = history(session, config.election, limit, led=overview.leader is not None)
    if as_json:
        show_json([asdict(term) for term in terms])
        return
    now, zone = datetime.now(timezone.utc), app.timezone
    show_table(
        ("term", "leader", "from", "for", "ended", "nobody led for"),
        (
            (
                term.term,
                term.node,
                moment(term.gained_at, zone),
                duration(((term.ended_at or now) - term.gained_at).total_seconds()),
                term.reason or "",
                _gap(term),
            )
            for term in terms
        ),
    )
    if not terms:
        click.echo("nobody has led yet")


def _gap(term: PastTerm) -> str:
    if term.gap is None:
        return ""
    return ("at most " if term.gap_is_at_most else "") + duration(term.gap)


def _show(config: Config, overview: Overview, *, as_json: bool, app: Any) -> None:
    if as_json:
        facts = asdict(overview)
        facts["nodes"] = [{**asdict(node), "role": overview.role_of(node)} for node in overview.nodes]
        show_json({"election": config.election, **facts})
        return
    now, zone = datetime.now(timezone.utc), app.timezone
    show_facts(_facts(config, overview, now, zone))
    if overview.nodes:
        click.echo()
        show_table(
            ("node", "role", "priority", "version", "schedule", "clock", "since"),
            (
                (
                    node.node,
                    overview.role_of(node),
                    node.priority,
                    node.app_version or node.package_version,
                    node.schedule,
                    skew(node.clock_skew),
                    time_of(node.started_at, now, zone),
                )
                for node in overview.nodes
            ),
        )
        for node in overview.nodes:
            if node.stands_back is not None:
                click.echo(f"{node.node} does not lead: {node.stands_back}")


def _facts(config: Config, overview: Overview, now: datetime, zone: Any) -> list[tuple[str, str]]:
    facts = [("election", f"{config.election} ({config.database})"), ("leader", _leader(overview, now))]
    facts += [
        ("successor", f"{_full_name(overview, seat.backend_pid, seat.node)} (backend {seat.backend_pid})")
        for seat in overview.successors
    ]
    if overview.other_elections:
        names = ", ".join(overview.other_elections)
        facts.append(("others", f"nodes are in {names}, and none is in {config.election}: is this the right app?"))
    if overview.held_at is not None:
        facts.append(
            ("held", f"since {moment(overview.held_at, zone)}: nobody is elected; `pgleader resume` ends that")
        )
    if overview.switchover_at is not None:
        to = f" to {overview.switchover_to}" if overview.switchover_to else ""
        facts.append(("switchover", f"at {moment(overview.switchover_at, zone)}{to}"))
    if overview.cordoned:
        facts.append(("cordoned", ", ".join(sorted(overview.cordoned))))
    if overview.paused_at is not None:
        facts.append(("paused", f"since {moment(overview.paused_at, zone)}: slots are skipped; see `pgleader resume`"))
    if overview.schema is None:
        facts.append(("schema", "none, or it may not be seen: see `pgleader migrate`"))
    else:
        facts.append(("schedule", _lag(overview)))
        facts.append(("schema", f"version {overview.schema}"))
    return facts


def _leader(overview: Overview, now: datetime) -> str:
    seat = overview.leader
    if seat is None:
        return "nobody" if overview.term_node is None else f"nobody; the last was {overview.term_node}"
    words = f"{overview.leading_node} (backend {seat.backend_pid})"
    if overview.term is not None and overview.since is not None:
        words += f", term {overview.term} for {duration((now - overview.since).total_seconds())}"
    elif seat.connected_at:
        words += f", connected since {seat.connected_at}"
    return words if overview.trust_left is None else f"{words}, trust left {max(0.0, overview.trust_left):.1f} s"


def _lag(overview: Overview) -> str:
    if overview.lateness > 1:
        return f"late by {duration(overview.lateness)}"
    if overview.unpublished > 1:
        return f"claimed and not published for {duration(overview.unpublished)}: is the broker away?"
    return "on time"


def _full_name(overview: Overview, pid: int, name: str) -> str:
    return next((node.node for node in overview.nodes if node.backend_pid == pid), name)
