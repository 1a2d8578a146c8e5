"""What runs, what is sent, and which faults there are."""

from __future__ import annotations

import dataclasses
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
KINDS = (
    "kill",
    "term",
    "stop",
    "terminate",
    "resign",
    "relay",
    "partition",
    "deaf",
    "pg-restart",
    "pg-crash",
    "broker-restart",
    "clock",
)


@dataclass(frozen=True)
class Scenario:
    """One kind of run.

    Attributes:
        faults: kinds of faults; each is made once before any comes again.
        seconds: for how long clients send, and faults are made.
        times: how many faults are made, spread over that time; with 0 it is as many as there is time for.
        workers: how many stand for the election.
        pool: of these workers.
        scheduler: one of `SCHEDULERS`.
        queues: on RabbitMQ, classic or quorum.
        ttl: the election's.
        poll: the workers' poll interval.
        visibility_timeout: on Redis, after how many seconds what a dead worker had is given to another; all tasks are
            then acknowledged late. None is Celery's hour.
        entries: of the schedule, and how many seconds are between their slots.
        notifying: how many clients send notifications, a durable and a raw one each time.
        keys: of these notifications.
        notification: how many seconds are between two of one client.
        calling: tasks that clients send, and how many seconds are between two.
        long: the share of these that take some time.
        chains: the share of leader-only tasks that are chains of three.
        later: the share of these that are sent with a countdown.
        witnessed: whether slots and notifications go only to the witness, which is left alone.
        on_leader: the share of faults that befall the leader, of those that befall a worker.
        twice: how often the next leader is harmed as well, before all is well again.
        aimed: whether faults come at due times of the schedule.

    """

    faults: Sequence[str]
    seconds: float
    times: int = 0
    workers: int = 3
    pool: str = "prefork"
    scheduler: str = "persistent"
    queues: str = "classic"
    ttl: float = 1.0
    poll: float = 0.2
    visibility_timeout: float | None = None
    entries: Mapping[str, float] = field(default_factory=dict)
    notifying: int = 0
    keys: int = 5
    notification: float = 1.0
    calling: Mapping[str, float] = field(default_factory=dict)
    long: float = 0.1
    chains: float = 0.0
    later: float = 0.0
    witnessed: bool = False
    on_leader: float = 1.0
    twice: float = 0.0
    aimed: bool = False

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

    def dump(self) -> str:
        """Return it as text, for the environment of the programs."""
        return json.dumps(dataclasses.asdict(self))


def current() -> Scenario:
    """Return the scenario that this program takes part in, or the usual one."""
    text = os.environ.get("CHAOS_SCENARIO")
    return Scenario(**json.loads(text)) if text else SCENARIOS["mixed"]


SCENARIOS = {
    "mixed": Scenario(
        faults=tuple(kind for kind in KINDS if kind not in {"resign", "relay"}),
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
        # 20,000 of them.
        notification=0.096,
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
