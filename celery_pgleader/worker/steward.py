"""Does what operators order of the leader, lets a node lead that is preferred to this one, and reports for metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing

import psycopg
from celery.utils.log import get_logger

from celery_pgleader.config import Config
from celery_pgleader.election import Leadership, Presence, Term
from celery_pgleader.store import Superseded
from celery_pgleader.store.orders import Orders
from celery_pgleader.threads import Doorbell, Ending

logger = get_logger(__name__)

# Orders that come without a wake-up, and nodes that are to be preferred, are seen within this time.
LOOK_EVERY = 5.0
LINE_GLANCE = 0.02
# Seconds for which nobody else is elected: if the node that was chosen dies in that very moment, others wait as long.
PREFERENCE = 2.0
# So many ttls a term lasts at least before it is given up in favour of a higher priority.
LEAST_TERM = 4.0


class Steward:
    """Heeds orders, in a thread of its own, for as long as a term lasts."""

    def __init__(
        self,
        config: Config,
        leadership: Leadership,
        presence: Presence,
        resign: Callable[[str], object],
        look: Callable[[], object],
        is_busy: Callable[[], bool],
        counted: Callable[[], Mapping[tuple[str, str], float]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            config: of this node.
            leadership: asked before each act.
            presence: what this node says of itself.
            resign: lets another node lead, for a reason.
            look: has the beat look at once for slots that are claimed.
            is_busy: whether this is no moment to hand over without being told to.
            counted: what this process has counted since it was started, by name and label.
            clock: monotonic seconds.

        """
        self._config = config
        self._leadership = leadership
        self._presence = presence
        self._resign = resign
        self._look = look
        self._is_busy = is_busy
        self._counted = counted
        self._reported: Mapping[tuple[str, str], float] = {}
        self._clock = clock

    def run(self, term: Term, ended: Ending) -> None:
        """Heed orders until the term ends, or until the session fails."""
        try:
            with (
                closing(Doorbell()) as bell,
                closing(Orders(self._config, term, self._presence.parameters())) as orders,
            ):
                ended.ring(bell)
                self._heed(orders, term, ended, bell)
        except Superseded:
            pass
        except psycopg.Error as error:
            if not ended.is_set():
                logger.warning("pgleader: the steward lost its session: %s", str(error).strip().splitlines()[0])

    def _heed(self, orders: Orders, term: Term, ended: Ending, bell: Doorbell) -> None:
        since, forgotten = self._clock(), False
        while not ended.is_set():
            order = orders.read()
            if order.cordoned:
                self._resign("cordoned")
                return
            if order.resign_in == 0:
                if self._obey(orders, order.resign_to, term, ended):
                    return
                orders.withdraw()
            elif self._give_way(orders, term, self._clock() - since):
                return
            if not forgotten:
                orders.forget_nodes()
                forgotten = True
            self._report(orders)
            if self._wait(orders, min(LOOK_EVERY, order.resign_in or LOOK_EVERY), ended, bell):
                self._look()

    def _report(self, orders: Orders) -> None:
        counted = self._counted()
        orders.report({key: value - self._reported.get(key, 0) for key, value in counted.items()})
        self._reported = counted

    def _obey(self, orders: Orders, node: str | None, term: Term, ended: Ending) -> bool:
        """Hand over, once the node that is to be next waits for the lock; tell whether it came to that."""
        if node is None:
            self._resign("resigned")
            return True
        if node == term.node:
            return False
        if not self._await_in_line(orders, node, ended):
            logger.warning("pgleader: does not hand over to %s, which is not in line for the lock", node)
            return False
        self._hand_over(orders, node, term)
        return True

    def _give_way(self, orders: Orders, term: Term, lasted: float) -> bool:
        """Hand over to a node that is to be preferred, if there is one; tell whether it came to that."""
        preferred = orders.preferred()
        if preferred is None:
            return False
        node, lacks_entries = preferred
        if not lacks_entries and (lasted < LEAST_TERM * self._config.ttl or self._is_busy()):
            return False
        if not orders.in_line(node):
            # It will be by the time of another look.
            orders.ask_for(node)
            return False
        self._hand_over(orders, node, term)
        return True

    def _hand_over(self, orders: Orders, node: str, term: Term) -> None:
        orders.prefer(node, PREFERENCE)
        if self._leadership.trusted(term):
            self._resign(f"handed over to {node}")

    def _await_in_line(self, orders: Orders, node: str, ended: Ending) -> bool:
        if orders.in_line(node):
            return True
        orders.ask_for(node)
        # It hears of it when it next asks for a place.
        until = self._clock() + 1.3 * self._config.poll_interval + self._config.ttl
        while not ended.is_set() and self._clock() < until:
            if orders.in_line(node):
                return True
            ended.wait(LINE_GLANCE)
        return False

    def _wait(self, orders: Orders, seconds: float, ended: Ending, bell: Doorbell) -> bool:
        until = self._clock() + seconds
        while not ended.is_set() and (left := until - self._clock()) > 0:
            if orders.wait(left, bell):
                return True
        return False
