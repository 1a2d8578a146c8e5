"""Who led when, how each term ended, and for how long nobody led then."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from celery_pgleader.operators import sql as statements
from celery_pgleader.postgres import Session


@dataclass(frozen=True)
class PastTerm:
    """A term, the present one included.

    Attributes:
        term: its number.
        node: who led.
        gained_at: from when.
        ended_at: until when; none if it lasts.
        reason: why it ended; none if it lasts.
        gap: seconds for which nobody led after it; none if that is not known yet.
        gap_is_at_most: whether it may have been less: when a leader that was lost ended nobody knows, and it is counted
            from its last sign of life.

    """

    term: int
    node: str
    gained_at: datetime
    ended_at: datetime | None
    reason: str | None
    gap: float | None
    gap_is_at_most: bool


def history(session: Session, election: str, limit: int, *, led: bool) -> list[PastTerm]:
    """Return the latest terms, the latest first.

    Args:
        session: with the database.
        election: its name.
        limit: so many at most.
        led: whether somebody leads; otherwise a term that has not ended was lost.

    Raises:
        psycopg.Error: the database could not be asked.

    """
    rows = session.execute(statements.HISTORY, {"election": election, "limit": limit}).fetchall()
    return [_term(*row, is_over=number > 0 or not led) for number, row in enumerate(rows)]


def _term(
    number: int,
    node: str,
    gained_at: datetime,
    ended_at: datetime | None,
    reason: str | None,
    next_at: datetime | None,
    last_sign: datetime,
    *,
    is_over: bool,
) -> PastTerm:
    if is_over and ended_at is None:
        return PastTerm(number, node, gained_at, None, "lost", None, gap_is_at_most=False)
    lost = reason == "lost"
    end = last_sign if lost else ended_at
    gap = (next_at - end).total_seconds() if next_at is not None and end is not None else None
    return PastTerm(number, node, gained_at, end, reason, gap, gap_is_at_most=lost)
