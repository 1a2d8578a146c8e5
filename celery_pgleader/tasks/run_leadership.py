"""What a leader-only task can ask, while it runs, of the leadership that it runs under."""

from __future__ import annotations

from dataclasses import dataclass

from celery import current_task

from celery_pgleader.errors import LeadershipLost
from celery_pgleader.tasks.trust_page import reader


@dataclass(frozen=True)
class RunLeadership:
    """The leadership under which a task was begun.

    Attributes:
        election: name of the election.
        term: number of the term: a fencing token. Whoever keeps the highest that it has seen, and refuses lower ones,
            is safe from a leader that was replaced without knowing it.

    """

    election: str
    term: int

    def trusted(self) -> bool:
        """Tell whether this node still leads that term."""
        return reader.term() == self.term

    def ensure(self) -> None:
        """Go on only if this node still leads that term.

        Raises:
            LeadershipLost: it does not.

        """
        if not self.trusted():
            raise LeadershipLost(f"term {self.term} of election {self.election} is over")


def current_leadership() -> RunLeadership | None:
    """Return the leadership under which the running task was begun, or none if it is not leader-only, or none runs."""
    if not current_task:
        return None
    leadership: RunLeadership | None = getattr(current_task.request, "pgleader_leadership", None)
    return leadership
