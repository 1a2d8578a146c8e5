"""What a message says of the slot that it was sent for, and how the task reads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from celery import current_task

HEADER = "pgleader_slot"
NOTIFICATION_HEADER = "pgleader_notification"


@dataclass(frozen=True)
class Slot:
    """The due instant of a schedule entry for which a task runs.

    Attributes:
        election: name of the election.
        entry: name of the schedule entry.
        at: when the run was due, in UTC.
        term: in which it was claimed.
        catch_up: whether it is late, and makes up for a time in which nobody led.
        deduplicate: whether the same slot is not to be run again.
        overlap: what is done while a run of an earlier slot is going on: allow, skip or wait.

    """

    election: str
    entry: str
    at: datetime
    term: int
    catch_up: bool
    deduplicate: bool
    overlap: str

    def to_header(self) -> dict[str, Any]:
        """Return it as a message's header holds it."""
        return {**asdict(self), "at": self.at.isoformat()}

    @classmethod
    def of_request(cls, request: Any) -> Slot | None:
        """Return the slot for which a task was sent, or none if it was not sent by the leader's beat."""
        header = request.get(HEADER)
        return cls(**{**header, "at": datetime.fromisoformat(header["at"])}) if header else None


def current_slot() -> Slot | None:
    """Return the slot for which the running task was sent, or none if it was sent otherwise, or none runs."""
    return Slot.of_request(current_task.request) if current_task else None
