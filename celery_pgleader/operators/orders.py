"""What operators order: each is written down for the leader, and followed until it is seen what became of it."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from celery_pgleader.beat.slots import task_id_of
from celery_pgleader.config import Config
from celery_pgleader.operators import sql as statements
from celery_pgleader.operators.overview import Overview, look
from celery_pgleader.operators.words import duration
from celery_pgleader.postgres import Session

GLANCE = 0.02
PUBLISHED_WITHIN = 5.0


class Refused(Exception):
    """What was ordered cannot be done."""


class NotDone(Refused):
    """What was ordered could be done, but nobody has."""


@dataclass(frozen=True)
class Done:
    """What became of an order.

    Attributes:
        facts: for programs.
        words: for people.

    """

    facts: Mapping[str, Any]
    words: str


def resign(config: Config, session: Session, to: str | None) -> Done:
    """Have the leader hand over, and wait until it has.

    Raises:
        Refused: it cannot.

    """
    overview = _led(config, session)
    if overview.held_at is not None:
        raise Refused("the election is held, so nobody would be elected; see `pgleader resume`")
    if to is not None:
        _check_can_lead(overview, to)
        if overview.leading_node == to:
            return Done({"leader": to, "term": overview.term, "changed": False}, f"{to} leads already")
    parameters = {"election": config.election, "at": None, "to": to}
    ((term, node, _),) = session.execute(statements.RESIGN, parameters).fetchall()
    new_term, new_node, gap = _await_handover(config, session, term, node)
    words = f"{new_node} leads, term {new_term}"
    words += f"; nobody led for {duration(gap)}" if gap is not None else ""
    return Done({"leader": new_node, "term": new_term, "changed": True, "gap": gap}, words)


def plan_switchover(config: Config, session: Session, at: datetime, to: str | None) -> None:
    """Have whoever leads at a time hand over then.

    Raises:
        Refused: nobody leads, or the node that is to lead cannot.

    """
    overview = _led(config, session)
    if to is not None:
        _check_can_lead(overview, to)
    session.execute(statements.RESIGN, {"election": config.election, "at": at, "to": to})


def cancel_switchover(config: Config, session: Session) -> datetime | None:
    """Plan none any more; return for when one was planned."""
    rows = session.execute(statements.CANCEL, {"election": config.election}).fetchall()
    return rows[0][0] if rows else None


def pause(config: Config, session: Session, *, election: bool = False) -> Done:
    """Pause the schedule, or hold the election."""
    parameters = {"election": config.election, "schedule": not election, "elections": election}
    paused_at, held_at = session.execute(statements.PAUSE, parameters).fetchall()[0]
    words = (
        "the election is held: nobody is elected, and who leads goes on"
        if election
        else "the schedule is paused: slots are skipped, and the election goes on"
    )
    return Done({"paused_at": paused_at, "held_at": held_at}, words)


def resume(config: Config, session: Session, *, election: bool = False, schedule: bool = False) -> Done:
    """End what `pause` has begun: what is named, or both."""
    both = election == schedule
    parameters = {"election": config.election, "schedule": schedule or both, "elections": election or both}
    rows = session.execute(statements.RESUME, parameters).fetchall()
    was_paused, was_held = rows[0] if rows else (False, False)
    words = [*(["the schedule goes on"] if was_paused else []), *(["the election goes on"] if was_held else [])]
    return Done({"schedule": was_paused, "election": was_held}, ", and ".join(words) or "nothing was paused")


def cordon(config: Config, session: Session, node: str) -> Done:
    """Have a node lead no more."""
    known = {there.node for there in look(config, session).nodes}
    session.execute(statements.CORDON, {"election": config.election, "node": node})
    unknown = "" if node in known else f"; no node of that name is there now ({_names(known)})"
    return Done({"node": node, "there": node in known}, f"{node} does not lead until it is uncordoned{unknown}")


def uncordon(config: Config, session: Session, node: str) -> Done:
    """Let a node lead again."""
    rows = session.execute(statements.UNCORDON, {"election": config.election, "node": node}).fetchall()
    was = bool(rows and rows[0][0])
    return Done({"node": node, "changed": was}, f"{node} may lead again" if was else f"{node} was not cordoned")


def pause_entry(config: Config, session: Session, entry: str) -> Done:
    """Have an entry's slots skipped.

    Raises:
        Refused: no leader has had such an entry.

    """
    rows = session.execute(statements.PAUSE_ENTRY, {"election": config.election, "entry": entry}).fetchall()
    if not rows:
        raise _unknown(config, session, entry)
    return Done({"entry": entry, "paused_at": rows[0][0]}, f"{entry} is paused: its slots are skipped")


def resume_entry(config: Config, session: Session, entry: str) -> Done:
    """Have an entry's slots run again.

    Raises:
        Refused: no leader has had such an entry.

    """
    rows = session.execute(statements.RESUME_ENTRY, {"election": config.election, "entry": entry}).fetchall()
    if not rows:
        raise _unknown(config, session, entry)
    was = rows[0][0]
    return Done({"entry": entry, "changed": was}, f"{entry} goes on" if was else f"{entry} was not paused")


def run_now(config: Config, session: Session, entry: str) -> Done:
    """Have an entry's task sent now, by the leader, and wait a little until it is.

    Raises:
        Refused: no leader has such an entry.

    """
    slot = session.execute(statements.NOW).fetchall()[0][0].astimezone(timezone.utc)
    parameters = {"election": config.election, "entry": entry, "slot": slot}
    task_id = task_id_of(config.election, entry, slot)
    if not session.execute(statements.RUN_NOW, {**parameters, "task_id": task_id}).fetchall():
        raise _unknown(config, session, entry)
    state, reason = _await_settled(session, parameters)
    led = look(config, session).leader is not None
    facts = {"entry": entry, "slot": slot, "task_id": task_id, "state": state, "reason": reason}
    if state == "published":
        words = f"{entry} was published, as task {task_id}"
    elif state != "claimed":
        words = f"{entry} was {state}: {reason}"
    elif led:
        words = f"{entry} is written down, and not published yet: is the broker away? As task {task_id}"
    else:
        words = f"{entry} is written down; nobody leads, and who does next will publish it, as task {task_id}"
    return Done(facts, words)


def unknown_entry(entry: str, known: list[str]) -> str:
    """Return what is said of an entry that is in nobody's schedule."""
    near = difflib.get_close_matches(entry, known, n=1)
    return f"no leader has an entry {entry!r} in its schedule" + (f"; did you mean {near[0]!r}?" if near else "")


def _led(config: Config, session: Session) -> Overview:
    overview = look(config, session)
    if overview.leader is None:
        raise NotDone("nobody leads")
    return overview


def _check_can_lead(overview: Overview, node: str) -> None:
    found = [there for there in overview.nodes if there.node == node]
    if not found:
        raise Refused(f"{node} is not there; there are {_names(there.node for there in overview.nodes)}")
    if found[0].cordoned:
        raise Refused(f"{node} is cordoned; see `pgleader uncordon`")
    if all(there.stands_back is not None for there in found):
        raise Refused(f"{node} does not lead: {found[0].stands_back}")


def _await_handover(config: Config, session: Session, term: int, node: str) -> tuple[int, str, float | None]:
    """Wait until another term has begun; return its number, its leader, and the seconds in between."""
    pause = threading.Event()
    until = time.monotonic() + 1.5 * config.poll_interval + 2 * config.ttl
    parameters = {"election": config.election, "term": term}
    while True:
        new_term, new_node, ordered, gap = session.execute(statements.CARRIED_OUT, parameters).fetchall()[0]
        if new_term != term:
            return new_term, new_node, gap
        if not ordered:
            raise NotDone(f"{node} has not handed over, since the other was not in line for the lock; see its log")
        if time.monotonic() > until:
            raise NotDone(f"{node} was told to resign, and nobody was elected yet; see `pgleader status`")
        pause.wait(GLANCE)


def _await_settled(session: Session, parameters: dict[str, Any]) -> tuple[str, str | None]:
    pause = threading.Event()
    until = time.monotonic() + PUBLISHED_WITHIN
    while True:
        state, reason = session.execute(statements.SLOT_STATE, parameters).fetchall()[0]
        if state != "claimed" or time.monotonic() > until:
            return state, reason
        pause.wait(GLANCE)


def _unknown(config: Config, session: Session, entry: str) -> Refused:
    rows = session.execute(statements.ENTRIES, {"election": config.election}).fetchall()
    return Refused(unknown_entry(entry, [row[0] for row in rows if row[5] is None]))


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names))) or "none"
