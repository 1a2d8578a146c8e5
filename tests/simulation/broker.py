"""The simulated broker: it takes messages, or fails before or after it has; it delivers at least once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from tests.simulation.world import TIME_UP, Line, Process, World, running

if TYPE_CHECKING:
    from tests.simulation.checks import Checks

# Seconds after which a connection to which nobody answers is given up.
PATIENCE = 3.0
# As many messages as Celery takes ahead of what runs.
PREFETCH = 4


class Message(NamedTuple):
    """What is looked at of a message."""

    task_id: str
    headers: dict[str, Any]


class Broker:
    """The broker."""

    checks: Checks

    def __init__(self, world: World) -> None:
        """Begin without connections."""
        self.world = world
        self.away_until = 0.0
        self.connections: list[Connection] = []

    @property
    def up(self) -> bool:
        return self.world.now >= self.away_until

    def give_up(self, process: Process) -> None:
        """Let go of the connections of a process that is not heard of."""
        for connection in [connection for connection in self.connections if connection.process is process]:
            connection.lose()

    def go_away(self, seconds: float) -> None:
        self.world.tell("broker", f"is away for {seconds:.3f} s")
        self.away_until = self.world.now + seconds
        for connection in list(self.connections):
            connection.lose()


class Connection(Line):
    """A connection of a process with the broker; stands for kombu's, a producer, and its channel."""

    connection_errors = (OSError,)
    channel_errors = ()
    # In one batch, all or nothing is taken.
    transport = SimpleNamespace(driver_type="simulated")

    def __init__(self, broker: Broker, process: Process) -> None:
        """Prepare."""
        super().__init__(process, "broker")
        self.broker = broker
        self.channel = self
        # What is published in a batch, and not sent yet.
        self.load: list[Message] | None = None
        self.lost = False
        self.on_lost: Callable[[], object] = lambda: None
        self._wake: Callable[..., None] = lambda _value=None: None

    def __enter__(self) -> Connection:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Lose the connection."""
        self.lose()

    def ensure_connection(self, **_: Any) -> None:
        self.dial("BROKER", PATIENCE, TimeoutError("the broker does not answer"))
        if not self.broker.up:
            raise ConnectionRefusedError("the broker is away")
        self.broker.connections.append(self)
        self.process.sessions.append(self)

    def lose(self) -> None:
        if self in self.broker.connections:
            self.lost = True
            self.broker.connections.remove(self)
            if not self.process.dead:
                self.process.sessions.remove(self)
            self._wake(ConnectionResetError("the broker is gone"))
            self.to_peer(self.on_lost)

    # As kombu calls it, and as happens to all sockets of a process when it dies and when the network is reset.
    release = vanish = reset = lose

    def poke(self) -> None:
        pass

    def publish(self, message: Message) -> None:
        if self.load is None:
            self.send([message])
        else:
            self.load.append(message)

    def send(self, messages: list[Message]) -> None:
        """Send messages, and wait until the broker has taken them."""
        self.process.step("PUBLISH")
        if self.lost:
            raise ConnectionResetError("the broker is gone")
        self.to_peer(self._arrive, messages)
        thread = running()
        self._wake = thread.waker()
        answer = thread.park(self.world.now + PATIENCE)
        self._wake = lambda _value=None: None
        if answer is TIME_UP:
            self.lose()
            raise TimeoutError("the broker does not answer")
        if answer is not None:
            raise answer

    def _arrive(self, messages: list[Message]) -> None:
        # What is on its way arrives, even if who has sent it has died.
        if self.broker.up and (self in self.broker.connections or self.process.dead):
            for message in messages:
                self.broker.checks.on_message(message)
            self.process.trapped("PUBLISH", "answer")
            if not self.lost:
                self.from_peer(lambda: self._wake(None))


class Load:
    """Takes the place of what the relay's courier loads a batch on."""

    def __init__(self, connection: Connection) -> None:
        """Prepare."""
        self._connection = connection

    def __enter__(self) -> None:
        """Begin to load."""
        self._connection.load = []

    def __exit__(self, error: object, *_: object) -> None:
        """Send, unless something went wrong."""
        load, self._connection.load = self._connection.load, None
        if load and error is None:
            self._connection.send(load)


Receive: TypeAlias = "Callable[[Delivery], object]"


@dataclass(eq=False)
class Delivery:
    """A message as the broker gives it to a consumer; stands for kombu's."""

    key: int
    queue: Queue
    connection: Connection
    delivery_info: dict[str, str]

    def ack(self) -> None:
        self._tell(self.queue.acknowledge)

    def reject(self, *, requeue: bool) -> None:
        self._tell(self.queue.give_back if requeue else self.queue.acknowledge)

    def reject_log_error(self, _logger: object, _errors: object, *, requeue: bool) -> None:
        self.reject(requeue=requeue)

    def _tell(self, call: Callable[[Delivery], object]) -> None:
        if not self.connection.lost:
            self.connection.to_peer(call, self)


class Queue:
    """A queue of the broker: each message is given to a consumer, and to another if that one is gone."""

    def __init__(self, name: str) -> None:
        """Begin empty."""
        self.name = name
        self.waiting: deque[int] = deque()
        self.given: dict[int, Delivery] = {}
        self._consumers: dict[Connection, Receive] = {}

    def put(self, key: int) -> None:
        self.waiting.append(key)
        self._deliver()

    def subscribe(self, connection: Connection, receive: Receive) -> None:
        self._consumers[connection] = receive
        self._deliver()

    def unsubscribe(self, connection: Connection) -> None:
        self._consumers.pop(connection, None)

    def acknowledge(self, delivery: Delivery) -> None:
        if self.given.get(delivery.key) is delivery:
            del self.given[delivery.key]
            self._deliver()

    def give_back(self, delivery: Delivery) -> None:
        """Have a message again, in front of the others."""
        if self.given.get(delivery.key) is delivery:
            self.waiting.appendleft(delivery.key)
            self.acknowledge(delivery)

    def lost(self, connection: Connection) -> None:
        """Have again what a connection has taken with it."""
        self.unsubscribe(connection)
        for delivery in [delivery for delivery in self.given.values() if delivery.connection is connection]:
            self.give_back(delivery)

    def _deliver(self) -> None:
        for connection, receive in self._consumers.items():
            taken = sum(delivery.connection is connection for delivery in self.given.values())
            while self.waiting and taken < PREFETCH:
                taken += 1
                delivery = Delivery(self.waiting.popleft(), self, connection, {"routing_key": self.name})
                self.given[delivery.key] = delivery
                connection.from_peer(receive, delivery)
