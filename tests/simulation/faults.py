"""What goes wrong in a history: at some time, or at some point of some operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.nodes import Node
    from tests.simulation.scene import Scene
    from tests.simulation.world import Process

PEERS = ("postgres", "broker")

# What each operation can be in the middle of, and what can then happen.
BEFORE = ("kill", "hang", "pause", "reset", "cut")
WITHIN = ("slow", "slow", "slow", "terminate", "crash", "kill")
ANSWER = ("kill", "hang", "pause", "reset", "cut", "lag", "fade", "crash")
STAGES = {"before": BEFORE, "within": WITHIN, "commit": WITHIN, "answer": ANSWER}
ELECTION = ("CONNECT", "take_place", "await_lock", "mint_term", "mint_term", "renew", "renew", "renew", "release")
BEAT = ("claim", "settle", "claimed", "entries", "register", "PUBLISH", "BROKER")
WORK = ("RUN", "try_turn", "sign_of_life", "BROKER")
RELAY = ("waiting", "newest", "dispatched", "PUBLISH", "BROKER")
# In which something is written, so that it can be held up in the middle, and before its commit.
WRITES = {"mint_term", "release", "claim", "settle", "register", "dispatched"}
# Between hearing of something and acting upon it.
HEARD = 0.01
# After which nobody knows what a process still does.
DISTURBING = {"kill", "hang", "pause", "cut", "fade", "reset", "lag"}
ANY_TIME = (
    *("hold", "cordon", "hand over", "kill", "hang", "pause", "fade", "terminate", "cut", "reset", "lag", "crash"),
    *("away", "resign", "leave", "step"),
)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong."""

    at: float
    what: str
    # To whom, by number; -1 for the leader of that moment.
    node: int
    # For which it lasts, or after which a process is started again.
    seconds: float
    # None if it just happens at that time; otherwise the first such operation after it is hit, when it got so far.
    operation: str = ""
    stage: str = ""
    # From whom the node is cut off.
    peer: str = "postgres"

    def __str__(self) -> str:
        """Return it in words."""
        whom = "the leader" if self.node < 0 else f"node {self.node}"
        where = f" at {self.operation}, {self.stage}" if self.operation else f" of {whom}"
        peer = f" from {self.peer}" if self.what == "cut" else ""
        return f"{self.at:7.3f}  {self.what}{peer}{where}, {self.seconds:.3f} s"


def draw_faults(random: Random, number: int, nodes: int, until: float, operations: Sequence[str]) -> list[Fault]:
    """Return random faults, some of which come in company."""
    faults: list[Fault] = []
    for _ in range(number):
        if faults and random.random() < 0.4:
            at, node = min(faults[-1].at + random.random(), until), faults[-1].node
        else:
            at, node = random.uniform(0, until * 0.8), -1 if random.random() < 0.6 else random.randrange(nodes)
        faults.append(_draw(random, at, node, until, operations))
    return faults


def _draw(random: Random, at: float, node: int, until: float, operations: Sequence[str]) -> Fault:
    seconds = min(random.choice((0.05, 0.4, 1.5, 3.0)) * random.uniform(0.5, 2), until - at)
    peer = random.choice(PEERS)
    if random.random() < 0.4:
        return Fault(at, random.choice(ANY_TIME), node, seconds, peer=peer)
    operation = random.choice(operations)
    stages = ["before"] if operation in {"CONNECT", "BROKER", "RUN"} else ["before", "answer"]
    if operation in WRITES:
        stages += ["within", "commit", "commit"]
    stage = random.choice(stages)
    return Fault(at, random.choice(STAGES[stage]), node, seconds, operation, stage, peer)


def arrange(scene: Scene, fault: Fault) -> None:
    """Have a fault happen when its time comes."""
    if not fault.operation:
        scene.world.at(fault.at, lambda: _happen(scene, fault, scene.node(fault.node)))
        return

    def trap(process: Process, operation: str, stage: str) -> float | None:
        if (operation, stage) != (fault.operation, fault.stage):
            return None
        node = next((node for node in scene.nodes if node.process is process and node.participant is not None), None)
        return _happen(scene, fault, node) if node is not None else None

    scene.world.at(fault.at, scene.world.traps.append, trap)


def _happen(scene: Scene, fault: Fault, node: Node) -> float:
    """Have a fault happen; return for how many seconds the operation is held up that it has hit."""
    left = max(0.0, min(fault.seconds, scene.history.until - scene.world.now))
    if fault.what == "slow" or not left:
        return left
    if fault.what == "away":
        scene.broker.go_away(left)
    elif fault.what == "crash":
        scene.server.crash(left)
        for process in scene.world.processes:
            # Until it is back, and until each has heard of it.
            process.disturb(max(scene.world.now + left, process.reaches("postgres") + HEARD))
    elif node.is_up:
        scene.world.tell(node, f"{fault.what} {fault.operation} {fault.stage}")
        if fault.what in DISTURBING:
            node.process.disturb(scene.world.now + left)
        getattr(Blow(scene, node, left, fault.peer), fault.what.replace(" ", "_"))()
    return 0.0


class Blow:
    """What faults do to a node: each is the method of its name."""

    def __init__(self, scene: Scene, node: Node, seconds: float, peer: str) -> None:
        """Prepare."""
        self._scene = scene
        self._node = node
        self._process = node.process
        self._seconds = seconds
        self._peer = peer
        self._until = scene.world.now + seconds

    def kill(self) -> None:
        self._process.kill()
        self._scene.world.at(self._until, self._node.start)

    def hang(self) -> None:
        # As a host that has lost its power: nobody closes its connections. It is replaced by another of that name.
        self._process.pause(float("inf"))
        self._node.forget()
        self._scene.world.at(self._until, self._node.start)
        # When the broker has missed its heartbeats.
        self._scene.world.at(self._until, self._scene.broker.give_up, self._process)

    def pause(self) -> None:
        self._process.pause(self._seconds)

    def cut(self) -> None:
        self._process.cut_until[self._peer] = self._until

    def reset(self) -> None:
        for session in list(self._process.sessions):
            session.reset()

    def lag(self) -> None:
        self._process.lag = self._seconds * 0.6
        self._process.lag_until = self._scene.world.now + self._seconds * 0.4

    def fade(self) -> None:
        # Slower and slower, then nothing.
        world, ttl = self._scene.world, self._node.config.ttl
        self._process.lag, self._process.lag_until = 0.3 * ttl, world.now + ttl
        # Until what was sent last has arrived.
        self._process.disturb(self._process.lag_until + self._process.lag)
        world.at(world.now + ttl * self._seconds % 0.9, self._process.cut_until.__setitem__, "postgres", self._until)

    def terminate(self) -> None:
        term = self._node.participant.leadership.term
        if term is not None:
            self._scene.server.terminate(term.backend_pid)

    def resign(self) -> None:
        self._node.resign()

    def leave(self) -> None:
        self._node.restart(self._until)

    def step(self) -> None:
        self._process.wall += self._seconds if self._peer == "postgres" else -self._seconds

    # What operators order, and take back.

    def hold(self) -> None:
        self._order({"held_at": self._scene.server.clock()}, {"held_at": None})

    def cordon(self) -> None:
        self._order({"cordoned": (self._node.name,)}, {"cordoned": ()})

    def hand_over(self) -> None:
        other = self._scene.nodes[self._scene.nodes.index(self._node) - 1]
        order = {"resign_at": self._scene.server.clock(), "resign_to": other.name, "resign_term": None}
        self._order(order, dict.fromkeys(order))

    def _order(self, order: dict[str, Any], undone: dict[str, Any]) -> None:
        self._scene.server.order("shop", order)
        self._scene.undone |= undone
        self._scene.world.at(self._until, self._scene.server.order, "shop", undone)
