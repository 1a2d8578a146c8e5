"""What goes wrong in a history: at some time, or at some point of some operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
ELECTION = ("CONNECT", "take_place", "await_lock", "mint", "mint", "renew", "renew", "renew", "release")
BEAT = ("claim", "settle", "claimed", "entries", "register", "PUBLISH", "BROKER")
WORK = ("RUN", "try_turn", "sign_of_life", "BROKER")
RELAY = ("waiting", "newest", "dispatched", "PUBLISH", "BROKER")
# In which something is written, so that it can be held up in the middle, and before its commit.
WRITES = {"mint", "release", "claim", "settle", "register", "dispatched"}
# Between hearing of something and acting upon it.
HEARD = 0.01
# After which nobody knows what a process still does.
DISTURBING = {"kill", "hang", "pause", "cut", "fade", "reset", "lag"}
ANY_TIME = (
    *("hold", "cordon", "hand over"),
    "kill",
    "hang",
    "pause",
    "fade",
    "terminate",
    "cut",
    "reset",
    "lag",
    "crash",
    "away",
    "resign",
    "leave",
    "step",
)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        at: when, in simulated seconds.
        what: happens.
        node: to whom, by number; -1 for whoever leads then.
        seconds: for which it lasts, or after which a process is started again.
        operation: none if it just happens at that time; otherwise the first such operation after it is hit.
        stage: how far the operation has got by then.
        peer: from whom the node is cut off.

    """

    at: float
    what: str
    node: int
    seconds: float
    operation: str = ""
    stage: str = ""
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
        scene.world.at(fault.at, lambda: happen(scene, fault, scene.node(fault.node)))
        return

    def trap(process: Process, operation: str, stage: str) -> float | None:
        if (operation, stage) != (fault.operation, fault.stage):
            return None
        node = next((node for node in scene.nodes if node.process is process), None)
        return happen(scene, fault, node) if node is not None else None

    scene.world.at(fault.at, scene.world.traps.append, trap)


def happen(scene: Scene, fault: Fault, node: Node | None) -> float:
    """Have a fault happen; return for how many seconds the operation is held up that it has hit."""
    left = max(0.0, min(fault.seconds, scene.history.until - scene.world.now))
    if not left:
        return 0.0
    if fault.what == "slow":
        return left
    if fault.what in SERVERS:
        SERVERS[fault.what](scene, left)
        for process in scene.world.processes if fault.what == "crash" else ():
            # Until it is back, and until each has heard of it.
            process.disturb(max(scene.world.now + left, process.reaches("postgres") + HEARD))
    elif node is not None and node.is_up:
        scene.world.tell(node, f"{fault.what} {fault.operation} {fault.stage}")
        if fault.what in DISTURBING and node.process is not None:
            node.process.disturb(scene.world.now + left)
        NODES[fault.what](scene, node, left, fault.peer)
    return 0.0


def _kill(_scene: Scene, node: Node, seconds: float, _peer: str) -> None:
    assert node.process is not None
    node.process.kill()
    node.world.at(node.world.now + seconds, node.start)


def _hang(scene: Scene, node: Node, seconds: float, _peer: str) -> None:
    # As a host that has lost its power: nobody closes its connections. It is replaced by another of that name.
    process = node.process
    assert process is not None
    process.pause(float("inf"))
    node.process = None
    node.world.at(node.world.now + seconds, node.start)
    # When the broker has missed its heartbeats.
    node.world.at(node.world.now + seconds, scene.broker.give_up, process)


def _pause(_scene: Scene, node: Node, seconds: float, _peer: str) -> None:
    assert node.process is not None
    node.process.pause(seconds)


def _cut(_scene: Scene, node: Node, seconds: float, peer: str) -> None:
    assert node.process is not None
    node.process.cut_until[peer] = node.world.now + seconds


def _reset(_scene: Scene, node: Node, _seconds: float, _peer: str) -> None:
    assert node.process is not None
    for session in list(node.process.sessions):
        session.reset()


def _lag(_scene: Scene, node: Node, seconds: float, _peer: str) -> None:
    process = node.process
    assert process is not None
    process.lag, process.lag_until = seconds * 0.6, node.world.now + seconds * 0.4


def _fade(_scene: Scene, node: Node, seconds: float, _peer: str) -> None:
    # Slower and slower, then nothing.
    process, ttl = node.process, node.config.ttl
    assert process is not None
    process.lag, process.lag_until = 0.3 * ttl, node.world.now + ttl
    # Until what was sent last has arrived.
    process.disturb(process.lag_until + process.lag)
    node.world.at(
        node.world.now + ttl * seconds % 0.9, process.cut_until.__setitem__, "postgres", node.world.now + seconds
    )


def _terminate(scene: Scene, node: Node, _seconds: float, _peer: str) -> None:
    term = node.participant.leadership.term
    if term is not None:
        scene.server.terminate(term.backend_pid)


def _resign(_scene: Scene, node: Node, _seconds: float, _peer: str) -> None:
    assert node.process is not None
    node.process.asked(node.resign)


def _leave(_scene: Scene, node: Node, seconds: float, _peer: str) -> None:
    node.restart(node.world.now + seconds)


def _step(_scene: Scene, node: Node, seconds: float, peer: str) -> None:
    assert node.process is not None
    node.process.wall += seconds if peer == "postgres" else -seconds


def _hold(scene: Scene, node: Node, seconds: float, _peer: str) -> None:
    _order(scene, {"held_at": scene.server.clock()}, {"held_at": None}, seconds)


def _cordon(scene: Scene, node: Node, seconds: float, _peer: str) -> None:
    _order(scene, {"cordoned": (node.name,)}, {"cordoned": ()}, seconds)


def _hand_over(scene: Scene, node: Node, seconds: float, _peer: str) -> None:
    other = scene.nodes[scene.nodes.index(node) - 1]
    order = {"resign_at": scene.server.clock(), "resign_to": other.name, "resign_term": None}
    _order(scene, order, dict.fromkeys(order), seconds)


def _order(scene: Scene, order: dict[str, Any], undone: dict[str, Any], seconds: float) -> None:
    scene.server.order("shop", order)
    scene.undone |= undone
    scene.world.at(scene.world.now + seconds, scene.server.order, "shop", undone)


NODES: dict[str, Callable[[Any, Any, float, str], None]] = {
    "hold": _hold,
    "cordon": _cordon,
    "hand over": _hand_over,
    "kill": _kill,
    "hang": _hang,
    "pause": _pause,
    "fade": _fade,
    "cut": _cut,
    "reset": _reset,
    "lag": _lag,
    "terminate": _terminate,
    "resign": _resign,
    "leave": _leave,
    "step": _step,
}
SERVERS: dict[str, Callable[[Any, float], None]] = {
    "crash": lambda scene, seconds: scene.server.crash(seconds),
    "away": lambda scene, seconds: scene.broker.go_away(seconds),
}
