"""One history: drawn from a seed, played, and looked at all the while."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import Any, TypeVar

from celery_pgleader.channels import Route
from celery_pgleader.config import Config
from celery_pgleader.tasks import queue_name
from tests.simulation.broker import Broker, Queue
from tests.simulation.checks import Checks
from tests.simulation.faults import BEAT, ELECTION, RELAY, WORK, Fault, arrange, draw_faults
from tests.simulation.nodes import Node
from tests.simulation.server import Server
from tests.simulation.world import World

T = TypeVar("T")

ELECTION_NAME = "shop"
CHANNEL = "orders"
# Simulated seconds within which, when all faults are over, somebody leads and everything is done that is due.
LEADER_BOUND, WORK_BOUND = 12.0, 45.0
GLANCE = 0.25
NO_WORK = (0.0, 0.0)


@dataclass(frozen=True)
class Send:
    """A transaction with durable notifications, all of the same key and payload."""

    at: float
    # Until they are committed, or rolled back.
    seconds: float
    committed: bool
    key: str | None
    number: int
    many: int


@dataclass(frozen=True)
class History:
    """Everything that a history begins with; with the same, it is the same."""

    # For all that is left to chance while it is played.
    seed: int
    nodes: int
    # How many different ones they have.
    priorities: int
    ttl: float
    # When all faults are over.
    until: float
    # Periods of schedule entries, by name.
    schedule: dict[str, float] = field(default_factory=dict)
    sends: tuple[Send, ...] = ()
    # Leader-only tasks: when each is sent, and how long it takes.
    works: tuple[tuple[float, float], ...] = ()
    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        """Return it in words."""
        of = f"of {self.priorities} priorities, ttl {self.ttl:g} s"
        lines = [f"seed {self.seed}: {self.nodes} nodes {of}, faults until {self.until:.3f} s"]
        lines += [f"    every {period:g} s: {name}" for name, period in self.schedule.items()]
        lines += [f"    {send}" for send in self.sends]
        lines += [f"    {at:7.3f}  leader-only task {key}, {takes:.3f} s" for key, (at, takes) in enumerate(self.works)]
        lines += [f"    {fault}" for fault in sorted(self.faults, key=lambda fault: fault.at)]
        return "\n".join(lines)


def draw(seed: int) -> History:
    """Return the history of a seed."""
    random = Random(seed)
    nodes = random.choice((1, 2, 3, 3, 4))
    until = random.uniform(1.5, 5)
    operations = [*ELECTION]
    schedule: dict[str, float] = {}
    sends: list[Send] = []
    works: tuple[tuple[float, float], ...] = ()
    kind = random.random()
    if kind < 0.4:
        schedule = {f"entry {i}": random.choice((0.5, 1.0, 2.5)) for i in range(random.randint(1, 3))}
        operations += BEAT
    elif kind < 0.65:
        sends = [_draw_send(random, until, number) for number in range(random.randint(2, 12))]
        operations += RELAY
    elif kind < 0.85:
        works = tuple(
            (random.uniform(0, until), random.choice((0.01, 0.2, 1.0)) * random.random())
            for _ in range(random.randint(1, 8))
        )
        operations += WORK
    number = 0 if sends and random.random() < 0.2 else random.randint(1, 5)
    if not number:
        # Where nothing goes wrong, others often follow closely: one that has the relay get up, and one while it is.
        sends += [_follow(random, send, place) for send in sends for place in random.choice(((), (1, 2), (1, 2)))]
    faults = draw_faults(random, number, nodes, until, operations)
    priorities, ttl = random.choice((1, 1, 2)), random.choice((1.0, 2.0))
    return History(seed, nodes, priorities, ttl, until, schedule, tuple(sends), works, tuple(faults))


def _draw_send(random: Random, until: float, number: int) -> Send:
    key = random.choice((None, "a", "a", "b"))
    held = random.choice((0.001, 0.02, 0.5)) * random.random()
    return Send(random.uniform(0, until), held, random.random() < 0.9, key, number, random.choice((1, 1, 1, 4)))


def _follow(random: Random, send: Send, place: int) -> Send:
    at = send.at + send.seconds + place * 0.01 * random.random()
    held = 0.001 if place == 1 else 0.03
    return replace(send, at=at, seconds=held * random.random(), number=send.number + 100 * place)


@lru_cache
def _config(ttl: float, priority: int, *, relays: bool) -> Config:
    channels = {CHANNEL: (Route("on_order", queue="orders"),)} if relays else {}
    return Config(
        database_url="host=simulated",
        election=ELECTION_NAME,
        ttl=ttl,
        poll_interval=ttl / 2,
        channels=channels,
        priority=priority,
    )


class Scene:
    """A history while it is played."""

    def __init__(self, history: History, *, trace: bool = False) -> None:
        """Put everything into place."""
        self.history = history
        self.world = World(history.seed, trace=trace)
        self.server = self.world.server = Server(self.world)
        self.broker = Broker(self.world)
        # What undoes the orders that operators have given.
        self.undone: dict[str, Any] = {}
        self.queue = Queue(queue_name(ELECTION_NAME))
        self.nodes = [
            Node(self, f"node {n}", _config(history.ttl, 1 + n % history.priorities, relays=bool(history.sends)))
            for n in range(history.nodes)
        ]
        self.checks = Checks(self)
        for key, (at, _) in enumerate(history.works):
            self.world.at(at, self.queue.put, key)
        for node in self.nodes:
            self.world.at(self.world.random.random() * 0.5, node.start)
        for fault in history.faults:
            arrange(self, fault)
        for send in history.sends:
            parameters = {"channel": CHANNEL, "payload": str(send.number), "key": send.key}
            self.world.at(send.at, self.server.transact, [parameters] * send.many, send.seconds, send.committed)

    @property
    def leader(self) -> Node | None:
        """Who trusts itself to lead, if somebody does."""
        return next((node for node in self.nodes if node.trusted_term is not None), None)

    def node(self, number: int) -> Node:
        """Return a node by its number, or the leader."""
        return self.nodes[number % len(self.nodes)] if number >= 0 else (self.leader or self.nodes[0])

    def play(self) -> list[str]:
        """Play the history; return what was not as promised."""
        world, until = self.world, self.history.until
        try:
            world.run(until)
            world.traps.clear()
            # Again, where somebody was writing to the row when they were to be undone.
            for seconds in (0.01, 0.5, 1.0):
                world.at(until + seconds, self.server.order, ELECTION_NAME, self.undone)
            for node in self.nodes:
                node.start()
            while not world.violations and not self.checks.is_at_rest():
                if world.now > until + LEADER_BOUND and self.leader is None:
                    world.violated(f"nobody leads {LEADER_BOUND:g} s after the last fault")
                elif world.now > until + WORK_BOUND:
                    world.violated(f"{WORK_BOUND:g} s after the last fault {self.checks.what_is_left()}")
                else:
                    world.run(world.now + GLANCE)
            if not world.violations:
                self.checks.at_the_end()
        finally:
            world.end()
        return world.violations


@dataclass(frozen=True)
class Outcome:
    """What came of a history: what was not as promised, and what happened, line by line, if that was wanted."""

    violations: list[str]
    trace: list[str]
    terms: int
    seconds: float
    # Tells whether two histories went the same way.
    mark: float


def play(history: History, *, trace: bool = False) -> Outcome:
    """Play a history."""
    scene = Scene(history, trace=trace)
    violations, world = scene.play(), scene.world
    return Outcome(violations, world.trace or [], scene.checks.highest_term, world.now, world.random.random())


def shrink(history: History) -> History:
    """Return a history with as little in it as is needed for something in it not to be as promised."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(history):
            if play(candidate).violations:
                history, smaller = candidate, True
                break
    return history


def _smaller(history: History) -> Iterator[History]:
    yield from (replace(history, faults=faults) for faults in _fewer(history.faults))
    yield from (replace(history, sends=sends) for sends in _fewer(history.sends))
    for index, work in enumerate(history.works):
        # The others keep their numbers.
        if work != NO_WORK:
            yield replace(history, works=(*history.works[:index], NO_WORK, *history.works[index + 1 :]))
    for entry in history.schedule if len(history.schedule) > 1 else ():
        yield replace(history, schedule={k: v for k, v in history.schedule.items() if k != entry})
    if history.nodes > 1:
        yield replace(history, nodes=history.nodes - 1)


def _fewer(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    half = len(items) // 2
    if half:
        yield items[:half]
        yield items[half:]
    for index in range(len(items)):
        yield items[:index] + items[index + 1 :]
