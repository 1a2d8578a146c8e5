"""`celery -A proj pgleader schedule` and `explain`."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import Any

import click

from celery_pgleader.cli.database import asking, config_of
from celery_pgleader.cli.explanation import Case, Found, Led, SlotRecord, explain
from celery_pgleader.cli.output import show_json, show_table, show_text
from celery_pgleader.cli.times import read_time
from celery_pgleader.config import Config
from celery_pgleader.operators import sql as statements
from celery_pgleader.operators.orders import unknown_entry
from celery_pgleader.operators.overview import look
from celery_pgleader.operators.words import duration, time_of
from celery_pgleader.policies import DEFAULT, policy_of
from celery_pgleader.postgres import Session

EX_UNKNOWN = 1


def show_schedule(app: Any, *, as_json: bool) -> None:
    """Print the entries that the leader, or the last one, has in its schedule."""
    config, zone = config_of(app), app.timezone
    with asking(app, pooled=True) as session:
        rows = session.execute(statements.ENTRIES, {"election": config.election}).fetchall()
        now = session.execute(statements.NOW).fetchall()[0][0]
        paused_at = look(config, session).paused_at
    entries = [_entry(config, *row) for row in rows if row[5] is None]
    if as_json:
        show_json(entries)
        return
    if paused_at is not None:
        click.echo("the schedule is paused: slots are skipped\n")
    show_table(
        ("entry", "schedule", "next", "last slot", "became", "policy"),
        (
            (
                entry["entry"],
                _plain(entry["schedule"]),
                "paused" if entry["paused_at"] else _next(entry["next_slot"], now),
                time_of(entry["last_slot"], now, zone) if entry["last_slot"] else "",
                _became(entry["state"], entry["reason"]),
                _policy(entry["policy"]),
            )
            for entry in entries
        ),
    )
    if not entries:
        click.echo("no leader has had a schedule yet")


def show_explanation(app: Any, entry: str, at: str | None, *, as_json: bool) -> int:
    """Print why an entry was, or was not, run at a time; return the exit code."""
    config, zone = config_of(app), app.timezone
    with asking(app, pooled=True) as session:
        now = session.execute(statements.NOW).fetchall()[0][0].astimezone(zone)
        rows = session.execute(statements.ENTRIES, {"election": config.election}).fetchall()
        row = next((row for row in rows if row[0] == entry), None)
        if row is None:
            words = unknown_entry(entry, [row[0] for row in rows if row[5] is None])
            facts: dict[str, Any] = {"entry": entry, "found": Found.UNKNOWN.value, "explanation": words, "slot": None}
        else:
            case = _case(config, session, row, at, now)
            found, words = explain(case, zone)
            facts = {"entry": entry, "found": found.value, "explanation": words, "slot": case.slot and case.slot.at}
    if as_json:
        show_json(facts)
    else:
        show_text(words)
    return EX_UNKNOWN if row is None else 0


def _case(config: Config, session: Session, row: tuple[Any, ...], at: str | None, now: datetime) -> Case:
    entry, _, schedule, next_slot, paused_at, retired_at, last = *row[:6], row[6]
    if at is not None:
        start, exact = read_time(at, now, now.tzinfo or timezone.utc)
        until = start + exact
    elif last is not None and (next_slot is None or next_slot > now):
        start, until = last, now
    else:
        # What is due now, and not accounted for.
        start, until = next_slot or now, now
    parameters = {"election": config.election, "entry": entry, "from": start, "until": until}
    slots = session.execute(statements.SLOTS_AT, parameters).fetchall()
    slot = SlotRecord(*slots[0]) if slots else None
    if slot is not None:
        # What comes before and after it, and not only before and after the minute that was asked for.
        parameters |= {"from": slot.at, "until": slot.through + timedelta(microseconds=1)}
    about = slot.at if slot is not None else max(start, next_slot) if next_slot and next_slot < until else start
    overview = look(config, session)
    return Case(
        entry=entry,
        schedule=schedule,
        policy=policy_of(config.schedule, entry),
        now=now,
        start=start,
        until=until,
        slot=slot,
        before=session.execute(statements.SLOT_BEFORE, parameters).fetchall()[0][0],
        after=session.execute(statements.SLOT_AFTER, parameters).fetchall()[0][0],
        next_slot=next_slot,
        known_since=row[11],
        paused_at=paused_at or overview.paused_at,
        retired_at=retired_at,
        led=_term(session, statements.TERM_AT, config, at=about),
        claimed_by=_term(session, statements.TERM, config, term=slot.term) if slot is not None else None,
        leader=overview.leading_node,
        first_term_at=session.execute(statements.FIRST_TERM, parameters).fetchall()[0][0],
    )


def _term(session: Session, statement: str, config: Config, **parameters: Any) -> Led | None:
    rows = session.execute(statement, {"election": config.election, **parameters}).fetchall()
    return Led(*rows[0]) if rows else None


def _entry(config: Config, *row: Any) -> dict[str, Any]:
    entry, task, schedule, next_slot, paused_at, _, slot, state, reason, settled_at, *_ = row
    policy = policy_of(config.schedule, entry)
    return {
        "entry": entry,
        "task": task,
        "schedule": schedule,
        "next_slot": next_slot,
        "paused_at": paused_at,
        "last_slot": slot,
        "state": state,
        "reason": reason,
        "settled_at": settled_at,
        "policy": {**asdict(policy), "misfire": policy.misfire.value, "overlap": policy.overlap.value},
    }


def _plain(schedule: str) -> str:
    # As Celery shows a crontab, without what makes it long.
    return re.sub(r"<crontab: (.+?) \(m/h/dM/MY/d\)>", r"\1", schedule)


def _next(slot: datetime | None, now: datetime) -> str:
    if slot is None:
        return "not known"
    left = (slot - now).total_seconds()
    return f"in {duration(left)}" if left > 0 else f"due for {duration(-left)}" if left < -1 else "now"


def _became(state: str | None, reason: str | None) -> str:
    if state is None:
        return ""
    return f"{state}: {reason}" if reason else state


def _policy(given: dict[str, Any]) -> str:
    default = {**asdict(DEFAULT), "misfire": DEFAULT.misfire.value, "overlap": DEFAULT.overlap.value}
    words = [name if value is True else f"{name} {value}" for name, value in given.items() if value != default[name]]
    return ", ".join(words)
