"""The leader's session with what operators order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery_pgleader.config import Config
from celery_pgleader.election import Term
from celery_pgleader.election.lock_key import KEPT_PLACE, PLACES, place_key
from celery_pgleader.store import sql as statements
from celery_pgleader.store.ledger import Superseded
from celery_pgleader.store.session import open_leaders_session
from celery_pgleader.threads import Doorbell


@dataclass(frozen=True)
class Order:
    """What the leader is ordered to do.

    Attributes:
        resign_in: seconds after which it is to hand over; none if it is not.
        resign_to: to whom; none is whoever is next.
        cordoned: it is not to lead at all.

    """

    resign_in: float | None
    resign_to: str | None
    cordoned: bool


class Orders:
    """What is ordered, in a session of its own that also hears of new orders; for one term."""

    def __init__(self, config: Config, term: Term, parameters: Mapping[str, object]) -> None:
        """Open the session.

        Args:
            config: which election, and where.
            term: of the leader.
            parameters: the node's, as its presence gives them.

        Raises:
            psycopg.Error: it could not be had.

        """
        place = place_key(config, PLACES[0])
        self._ttl = config.ttl
        self._parameters = {
            **parameters,
            "election": config.election,
            "node": term.node,
            "term": term.number,
            "priority": config.priority,
            "place_objid": place.objid,
            "first_place": place.classid,
            "last_place": place_key(config, KEPT_PLACE).classid,
        }
        self._session = open_leaders_session(config, "steward", term.node, statements.LISTEN_FOR_ORDERS)

    def read(self) -> Order:
        """Return what is ordered.

        Raises:
            Superseded: the term is over.

        """
        rows = self._execute(statements.ORDERS)
        if not rows:
            raise Superseded
        return Order(*rows[0])

    def preferred(self) -> tuple[str, bool] | None:
        """Return a node that is to be preferred to this one, and whether that is since this one lacks entries."""
        rows = self._execute(statements.PREFERRED)
        return rows[0] if rows else None

    def in_line(self, node: str) -> bool:
        """Tell whether a node waits for the lock."""
        waits: bool = self._execute(statements.IN_LINE, node=node)[0][0]
        return waits

    def prefer(self, node: str, seconds: float) -> None:
        """Have nobody else elected for so long.

        Raises:
            Superseded: the term is over.

        """
        if not self._execute(statements.PREFER, next_node=node, seconds=seconds):
            raise Superseded

    def ask_for(self, node: str) -> None:
        """Have a node come into the line.

        Raises:
            Superseded: the term is over.

        """
        self.prefer(node, 0.0)

    def withdraw(self) -> None:
        """Drop the order to hand over."""
        self._execute(statements.WITHDRAW)

    def report(self, counts: Mapping[tuple[str, str], float]) -> None:
        """Write down that the leader is there, and what it has counted since the last report, by name and label."""
        names, labels = [name for name, _ in counts], [label for _, label in counts]
        self._execute(statements.REPORT, names=names, labels=labels, values=[float(value) for value in counts.values()])

    def forget_nodes(self) -> None:
        """Drop the rows of nodes that have not been there for a day."""
        self._execute(statements.FORGET_NODES)

    def wait(self, seconds: float, bell: Doorbell) -> bool:
        """Wait for a new order, for `seconds` at most, or until the bell rings; tell whether there is one."""
        return bool(self._session.hear(seconds, bell))

    def close(self) -> None:
        """End the session."""
        self._session.close()

    def _execute(self, statement: str, **parameters: Any) -> list[Any]:
        with self._session.bounded(self._ttl):
            cursor = self._session.execute(statement, self._parameters | parameters)
            return cursor.fetchall() if cursor.description else []
