"""Who holds an election's locks, seen from outside."""

from __future__ import annotations

from dataclasses import dataclass

from celery_pgleader.config import Config
from celery_pgleader.election.lock_key import KEPT_PLACE, PLACES, leader_key, place_key
from celery_pgleader.election.lock_session import session_name
from celery_pgleader.election.sql import HOLDERS
from celery_pgleader.postgres import Session, open_session


@dataclass(frozen=True)
class Seat:
    """A lock of the election and who holds it.

    Attributes:
        role: leader or successor.
        node: who, as far as its session's name tells; cut to what Postgres shows.
        backend_pid: the session.
        connected_at: when the session began, ISO 8601; none if we may not see it.
        is_ours: whether its session is a node's; other programs may take the lock as well.

    """

    role: str
    node: str
    backend_pid: int
    connected_at: str | None
    is_ours: bool = True


def observe(config: Config) -> list[Seat]:
    """Return who leads and who is next.

    Raises:
        psycopg.Error: the database could not be asked.

    """
    name = session_name("status", "")
    with open_session(config.database_url, name, unresponsive_after=config.ttl, pooled=True) as session:
        return seats(config, session)


def seats(config: Config, session: Session) -> list[Seat]:
    """Return who leads and who is next, as a session sees it.

    Raises:
        psycopg.Error: the database could not be asked.

    """
    key = leader_key(config)
    place = place_key(config, PLACES[0])
    parameters = {
        "classid": key.classid,
        "objid": key.objid,
        "objsubid": key.objsubid,
        "first_place": place.classid,
        "last_place": place_key(config, KEPT_PLACE).classid,
        "place_objid": place.objid,
    }
    rows = session.execute(HOLDERS, parameters).fetchall()
    return [Seat(role, _node(name), pid, since, _is_ours(name)) for role, name, pid, since in rows]


def _node(application_name: str | None) -> str:
    # A program of another kind may hold the lock, or a role whose sessions we may not see.
    return (application_name or "").split(" ", 2)[2] if _is_ours(application_name) else application_name or "unknown"


def _is_ours(application_name: str | None) -> bool:
    # "pgleader <role> <node>"
    words = (application_name or "").split(" ", 2)
    return len(words) == 3 and words[0] == "pgleader"  # noqa: PLR2004
