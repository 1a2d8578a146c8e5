"""Terms that are counted, and remembered, in the ledger."""

from __future__ import annotations

from psycopg.errors import FeatureNotSupported, InsufficientPrivilege

from celery_pgleader.election.lock_session import TermBook
from celery_pgleader.postgres import Session
from celery_pgleader.store import sql as statements
from celery_pgleader.store.schema import PATIENCE, Schema

# More than are ever counted between one promotion of a standby and the next.
TERMS_IN_A_TIMELINE = 1_000_000_000


def _prepare(session: Session) -> dict[str, object]:
    Schema(session).ensure()
    return {"least_term": TERMS_IN_A_TIMELINE * (_timeline(session) - 1)}


def _timeline(session: Session) -> int:
    """Return the server's timeline; it stays the same for as long as a session with a primary lasts."""
    try:
        with session.bounded(PATIENCE):
            row = session.execute(statements.TIMELINE).fetchone()
    except (FeatureNotSupported, InsufficientPrivilege):
        # A server that hides its log. Terms rise by what is stored.
        return 1
    assert row is not None
    timeline: int = row[0]
    return timeline


LEDGER_TERMS = TermBook(mint=statements.MINT_TERM, renew=statements.RENEW, release=statements.RELEASE, prepare=_prepare)
