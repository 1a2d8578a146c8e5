"""How the sessions are opened in which something is written for a leader."""

from __future__ import annotations

from celery_pgleader.config import Config
from celery_pgleader.election.lock_session import session_name
from celery_pgleader.postgres import Session, open_session
from celery_pgleader.store import sql as statements

# Nothing that is asked in them takes longer, unless the server is in trouble.
LONGEST_STATEMENT = 30.0


def open_leaders_session(config: Config, purpose: str, node: str, *more: str) -> Session:
    """Open a session that depends on no setting of its role or database, and may be idle for long.

    Args:
        config: where, and with which ttl: what is stopped within a transaction holds up the next leader for less.
        purpose: what it is for, in a word.
        node: whose it is.
        more: statements to be executed in it first.

    Raises:
        psycopg.Error: it could not be had.

    """
    session = open_session(config.database_url, session_name(purpose, node), unresponsive_after=config.ttl)
    try:
        with session.bounded(config.ttl):
            session.execute(
                statements.GREET,
                {"below_ttl": f"{round(config.ttl * 900)}ms", "longest": f"{round(LONGEST_STATEMENT * 1000)}ms"},
            )
            for statement in (statements.STAY, *more):
                session.execute(statement)
    except BaseException:
        session.close()
        raise
    return session
