"""Terms that are counted, and remembered, in the ledger."""

from __future__ import annotations

from celery_pgleader.election.lock_session import TermBook
from celery_pgleader.postgres import Session
from celery_pgleader.store import sql as statements
from celery_pgleader.store.schema import Schema


def _prepare(session: Session) -> None:
    Schema(session).ensure()


LEDGER_TERMS = TermBook(mint=statements.MINT_TERM, renew=statements.RENEW, release=statements.RELEASE, prepare=_prepare)
