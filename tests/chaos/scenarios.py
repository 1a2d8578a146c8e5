"""What runs, what is sent, and which faults there are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SCHEDULERS = {
    "persistent": "celery.beat:PersistentScheduler",
    "django": "django_celery_beat.schedulers:DatabaseScheduler",
    "sqlalchemy": "sqlalchemy_celery_beat.schedulers:DatabaseScheduler",
    "redbeat": "redbeat.RedBeatScheduler",
    # The ledger is in another database than the scheduler's tables.
    "django-two-databases": "django_celery_beat.schedulers:DatabaseScheduler",
}
POOLS = ("prefork", "solo", "threads", "gevent", "eventlet")
# In these a thread that does not wait holds up all others.
GREEN = {"gevent", "eventlet"}
MIXED = "kill", "term", "stop", "terminate", "partition", "deaf", "pg-restart", "pg-crash", "broker-restart", "clock"
KINDS = (*MIXED, "resign", "relay")


@dataclass(frozen=True)
class Scenario:
    """One kind of run; of all that it names, there are so many, or so many seconds between one and the next."""

    faults: Sequence[str]  # Each kind is made once before any comes again.
    seconds: float  # For so long clients send, and faults are made.
    times: int = 0  # So many faults are made, spread over that time; with 0, as many as there is time for.
    on_leader: float = 1.0  # Of faults that befall a worker, this share befalls the leader.
    twice: float = 0.0  # So often the next leader is harmed as well, before all is well again.
    aimed: bool = False  # Faults come at due times of the schedule.
    workers: int = 3  # They stand for the election.
    pool: str = "prefork"
    scheduler: str = "persistent"
    queues: str = "classic"
    ttl: float = 1.0
    poll: float = 0.2
    visibility_timeout: float | None = None  # On Redis, with late acknowledgement; none is Celery's hour.
    entries: Mapping[str, float] = field(default_factory=dict)  # Of the schedule.
    notifying: int = 0  # Clients that send notifications, a durable and a raw one each time.
    notification: float = 1.0  # For each of these clients.
    keys: int = 5  # Of notifications.
    calling: Mapping[str, float] = field(default_factory=dict)  # Tasks that clients send.
    long: float = 0.1  # This share of tasks takes some time.
    chains: float = 0.0  # This share of leader-only tasks is sent as a chain of three.
    later: float = 0.0  # This share of them is sent with a countdown.
    witnessed: bool = False  # Slots and notifications go to the witness only, which is left alone.

    @property
    def least(self) -> dict[str, int]:
        """What the report has at least, or the run has shown nothing."""
        least = {f"faults.{kind}": self.times // len(self.faults) for kind in self.faults}
        if self.entries:
            least["slots.published"] = 1
        if self.notifying:
            least["notifications.sent"] = self.notifying * self.amount(self.notification)
        if "chaos.lead" in self.calling:
            least["leader_only.sent"] = self.amount(self.calling["chaos.lead"])
        return least

    def amount(self, pace: float) -> int:
        """Return how many are sent at a pace, at least."""
        return round(self.seconds / pace)


def current() -> Scenario:
    """Return the scenario that this program takes part in, or the usual one."""
    return (
        Scenario(**json.loads(os.environ["CHAOS_SCENARIO"])) if "CHAOS_SCENARIO" in os.environ else SCENARIOS["mixed"]
    )


SCENARIOS = {
    "mixed": Scenario(
        faults=MIXED,
        seconds=60.0,
        workers=4,
        ttl=2.0,
        poll=1.0,
        visibility_timeout=15.0,
        entries={"plain": 1.0, "each": 1.0, "brief": 1.0, "single": 1.0, "patient": 2.0, "minute": 60.0},
        notifying=2,
        notification=0.35,
        calling={"chaos.lead": 0.4, "chaos.work": 0.3},
        on_leader=0.75,
        twice=0.3,
    ),
    "handovers": Scenario(
        faults=("resign", "term", "kill", "terminate", "stop"),
        seconds=0.0,
        times=200,
        pool="solo",
        entries={"plain": 1.0, "long": 7.0, "minute": 60.0},
        witnessed=True,
        aimed=True,
    ),
    "relaying": Scenario(
        faults=("kill", "stop", "terminate", "relay", "broker-restart", "pg-restart"),
        seconds=240.0,
        times=32,
        pool="solo",
        notifying=8,
        keys=100,
        notification=0.096,  # 20,000 in all
        witnessed=True,
    ),
    "leading": Scenario(
        faults=("kill", "term", "stop", "terminate", "resign", "broker-restart"),
        seconds=70.0,
        times=12,
        ttl=2.0,
        poll=1.0,
        calling={"chaos.lead": 0.14},
        long=0.5,
        chains=0.1,
        later=0.15,
    ),
}
