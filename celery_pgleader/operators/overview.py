"""What Postgres knows of an election, in one look: shown by `status` and the dashboard, judged by `check`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from psycopg.errors import InsufficientPrivilege

from celery_pgleader.config import Config
from celery_pgleader.election.observer import Seat, seats
from celery_pgleader.operators import sql as statements
from celery_pgleader.postgres import Session


@dataclass(frozen=True)
class Node:
    """A node that is there.

    Attributes:
        node: its name.
        instance: which of several processes with that name.
        backend_pid: its session.
        priority: of two, the higher one is preferred.
        stands_back: why it does not stand; none if it does.
        cordoned: it is not to lead, by order of an operator.
        entries: of its schedule; none if the scheduler keeps them elsewhere.
        schedule: a hash of what they are.
        app_version: of the app, if the settings tell.
        package_version: of this package.
        clock_skew: seconds by which its clock is ahead of the database's.
        started_at: when it was started.

    """

    node: str
    instance: str
    backend_pid: int
    priority: int
    stands_back: str | None
    cordoned: bool
    entries: list[str] | None
    schedule: str | None
    app_version: str
    package_version: str
    clock_skew: float
    started_at: datetime


@dataclass(frozen=True)
class Overview:
    """An election.

    Attributes:
        leader: who holds the lock.
        successors: who waits for it.
        term: the latest; none if there was none yet, or no schema.
        term_node: who was elected for it.
        since: when.
        paused_at: since when the schedule is paused.
        held_at: since when nobody is elected.
        cordoned: who is not to lead.
        switchover_at: when the leader is to hand over.
        switchover_to: to whom.
        schema: version of the schema; none if there is none.
        trust_left: seconds for which the leader's last sign of life lasts; none if that may not be seen.
        nodes: that are there.
        lateness: seconds by which the oldest slot that was due and is not accounted for is late.
        unpublished: seconds since the oldest slot was claimed that is not published yet.
        other_elections: in which there are nodes; looked for only where there is none in this one.

    """

    leader: Seat | None
    successors: list[Seat]
    term: int | None = None
    term_node: str | None = None
    since: datetime | None = None
    paused_at: datetime | None = None
    held_at: datetime | None = None
    cordoned: list[str] = field(default_factory=list)
    switchover_at: datetime | None = None
    switchover_to: str | None = None
    schema: int | None = None
    trust_left: float | None = None
    nodes: list[Node] = field(default_factory=list)
    lateness: float = 0.0
    unpublished: float = 0.0
    other_elections: list[str] = field(default_factory=list)

    @property
    def leading_node(self) -> str | None:
        """The name of the leader, in full: its session's name may be cut."""
        if self.leader is None:
            return None
        pid = self.leader.backend_pid
        return next((node.node for node in self.nodes if node.backend_pid == pid), self.leader.node)

    def role_of(self, node: Node) -> str:
        """Return what a node is: leader, successor, follower, or one that does not lead."""
        if self.leader is not None and self.leader.backend_pid == node.backend_pid:
            return "leader"
        if any(seat.backend_pid == node.backend_pid for seat in self.successors):
            return "successor"
        return "cordoned" if node.cordoned else "stands back" if node.stands_back is not None else "follower"


def look(config: Config, session: Session) -> Overview:
    """Return what Postgres knows of an election: less where there is no schema, or the role may not see it.

    Raises:
        psycopg.Error: the database could not be asked.

    """
    found = seats(config, session)
    leader = next((seat for seat in found if seat.role == "leader"), None)
    successors = [seat for seat in found if seat.role == "successor"]
    trust_left = _trust_left(config, session, leader) if leader is not None else None
    parameters = {"election": config.election}
    try:
        if not session.execute(statements.HAS_SCHEMA).fetchall()[0][0]:
            return Overview(leader, successors, trust_left=trust_left)
        row = session.execute(statements.ELECTION, parameters).fetchall()[0]
        nodes = session.execute(statements.NODES, parameters).fetchall()
        lateness, unpublished = session.execute(statements.LATENESS, parameters).fetchall()[0]
        others = [] if nodes else session.execute(statements.OTHER_ELECTIONS_PRESENT, parameters).fetchall()
    except InsufficientPrivilege:
        return Overview(leader, successors, trust_left=trust_left)
    return Overview(
        leader=leader,
        successors=successors,
        term=row[0] or None,
        term_node=row[1] or None,
        since=row[2] if row[0] else None,
        paused_at=row[3],
        held_at=row[4],
        cordoned=row[5] or [],
        switchover_at=row[6],
        switchover_to=row[7],
        schema=row[8],
        trust_left=trust_left,
        nodes=[Node(*node) for node in nodes],
        lateness=lateness,
        unpublished=unpublished,
        other_elections=[name for (name,) in others],
    )


def _trust_left(config: Config, session: Session, leader: Seat) -> float | None:
    rows = session.execute(statements.SILENCE, {"backend_pid": leader.backend_pid}).fetchall()
    return None if not rows or rows[0][0] is None else float(config.trust_window - rows[0][0])
