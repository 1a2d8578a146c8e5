"""The leader's session with the durable notifications."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import set_json_loads

from celery_pgleader.config import Config
from celery_pgleader.election import Term
from celery_pgleader.store import sql as statements
from celery_pgleader.store.ledger import Superseded
from celery_pgleader.store.session import LONGEST_STATEMENT, open_leaders_session
from celery_pgleader.threads import Doorbell

BATCH = 500
BATCH_BYTES = 4_000_000
# A statement that was asked so often is prepared.
PREPARE_AFTER = 2


@dataclass(frozen=True)
class Letter:
    """A durable notification that waits for its dispatch.

    Attributes:
        id: rises with each that is written.
        uid: from which task ids are made.
        channel: where it was sent.
        key: with the same key they are dispatched in order; none if the order does not matter.
        payload: its value, as JSON text: what Postgres can hold is more than what Python can read.
        attempts: how often its dispatch has failed.

    """

    id: int
    uid: UUID
    channel: str
    key: str | None
    payload: str
    attempts: int


class Mailbox:
    """What waits, in a session of its own that also hears the wake-ups; for one term."""

    def __init__(self, config: Config, term: Term, channels: Iterable[str], may_act: Callable[[], bool]) -> None:
        """Open the session.

        Raises:
            psycopg.Error: it could not be had.

        """
        self._term = term
        self._election = config.election
        self._channels = list(channels)
        self._may_act = may_act
        self._session = open_leaders_session(config, "relay", term.node, statements.LISTEN, statements.RELAY)
        self._session.prepare_threshold = PREPARE_AFTER
        set_json_loads(_as_it_is, self._session)

    def waiting(
        self, *, after: int = 0, alone: bool = False, resting: Collection[Letter] = (), limit: int = BATCH
    ) -> tuple[list[Letter], bool]:
        """Return what waits, oldest first: a batch of bounded size; and whether there was no room for more.

        Args:
            after: those with a higher id only.
            alone: without those behind an older one with the same key.
            resting: without these, and without all that have the same channel and key.
            limit: so many at most.

        Raises:
            Superseded: the term is over.

        """
        awake = self._awake(resting)
        rows = self._execute(statements.WAITING, **awake, after=after, alone=alone, limit=limit, bytes=BATCH_BYTES)
        letters = [Letter(*row[:-1]) for row in rows]
        return letters, bool(rows) and (len(rows) == limit or len(rows) < rows[0][-1])

    def is_any_waiting(self, *, resting: Collection[Letter] = ()) -> bool:
        """Tell whether `waiting` would return anything."""
        found: bool = self._execute(statements.IS_ANY_WAITING, **self._awake(resting))[0][0]
        return found

    def newest(self) -> int:
        """Return the highest id of those that wait."""
        newest: int = self._execute(statements.NEWEST)[0][0]
        return newest

    def dispatched(self, letters: Iterable[Letter]) -> None:
        """Write down that notifications were dispatched."""
        self._write(statements.DISPATCHED, ids=[letter.id for letter in letters])

    def tried(self, letter: Letter, error: str) -> None:
        """Write down that an attempt has failed."""
        self._write(statements.TRIED, id=letter.id, error=error)

    def bury(self, letter: Letter, error: str) -> None:
        """Make a notification a dead letter."""
        self._write(statements.BURY, id=letter.id, error=error)

    def lie_down(self, *, lightly: bool) -> bool:
        """Ask for wake-ups; tell whether all that is committed from now on, and not seen yet, will have one.

        If not, a sender is on the way who may have found nobody asleep. Then only who sleeps `lightly` is woken by the
        others, until it gets up; otherwise nobody is.
        """
        asleep: bool = self._execute(statements.LIE_DOWN, lightly=lightly)[0][0]
        return asleep

    def get_up(self) -> None:
        """Have senders spare their wake-ups."""
        self._execute(statements.GET_UP)

    def wait(self, seconds: float, bell: Doorbell) -> bool:
        """Wait for a wake-up, for `seconds` at most, or until the bell rings; tell whether there was one."""
        return bool(self._session.hear(seconds, bell))

    def close(self) -> None:
        """End the session."""
        self._session.close()

    def _awake(self, resting: Collection[Letter]) -> dict[str, Any]:
        return {
            "channels": self._channels,
            "resting": [letter.id for letter in resting],
            "rest_channels": [letter.channel for letter in resting if letter.key is not None],
            "rest_keys": [letter.key for letter in resting if letter.key is not None],
        }

    def _write(self, statement: str, **parameters: Any) -> None:
        if not self._execute(statement, **parameters):
            raise Superseded

    def _execute(self, statement: str, **parameters: Any) -> list[Any]:
        parameters |= {"election": self._election, "term": self._term.number}
        with self._session.bounded(LONGEST_STATEMENT, self._is_over):
            return self._session.execute(statement, parameters).fetchall()

    def _is_over(self) -> bool:
        if not self._may_act():
            raise Superseded
        return False


def _as_it_is(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode()
