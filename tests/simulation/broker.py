"""The simulated broker: it takes messages, and may fail to before or after; it delivers at least once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from celery_pgleader.notifications.courier import BrokerAway, Courier, Cut
from tests.simulation.world import TIME_UP, Process, World, running, sleep

# Seconds after which a connection to which nobody answers is given up.
PATIENCE = 3.0


@dataclass(frozen=True)
class Message:
    """A message.

    Attributes:
        queue: where it went.
        task: name of the task.
        task_id: its id.
        headers: its headers.
        args: its arguments.

    """

    queue: str
    task: str
    task_id: str
    headers: dict[str, Any]
    args: tuple[Any, ...]


class Broker:
    """What it has taken, in order."""

    def __init__(self, world: World) -> None:
        """Begin empty."""
        self.world = world
        self.away_until = 0.0
        self.taken: list[tuple[float, Message]] = []
        self.connections: list[Connection] = []
        # Called with each message that is taken.
        self.on_message: Callable[[Message], object] = lambda _message: None

    @property
    def up(self) -> bool:
        """Whether it is there."""
        return self.world.now >= self.away_until

    def take(self, messages: list[Message]) -> None:
        """Take messages."""
        for message in messages:
            self.taken.append((self.world.now, message))
            self.on_message(message)

    def give_up(self, process: Process) -> None:
        """Let go of the connections of a process that is not heard of."""
        for connection in list(self.connections):
            if connection.process is process:
                connection.lose()

    def go_away(self, seconds: float) -> None:
        """Be away for a while."""
        self.world.tell("broker", f"is away for {seconds:.3f} s")
        self.away_until = self.world.now + seconds
        for connection in list(self.connections):
            connection.lose()


class Connection:
    """A connection of a process with the broker; stands for kombu's."""

    connection_errors = (OSError,)
    channel_errors = ()

    def __init__(self, broker: Broker, process: Process) -> None:
        """Prepare."""
        self.broker = broker
        self.process = process
        self.transport = SimpleNamespace(driver_type="amqp")
        self.transport_options: dict[str, Any] = {}
        self.lost = False
        self._said = self._heard = 0.0
        # Called when it is.
        self.on_lost: Callable[[], object] = lambda: None
        self._wake: Callable[..., None] = lambda _value=None: None

    def __enter__(self) -> Connection:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect."""
        self.release()

    def ensure_connection(self, **_: Any) -> None:
        """Connect."""
        process, world = self.process, self.process.world
        process.step("BROKER")
        arrives = process.reaches("broker")
        if arrives > world.now + PATIENCE:
            sleep(PATIENCE)
            raise TimeoutError("the broker does not answer")
        sleep(arrives - world.now)
        if not self.broker.up:
            raise ConnectionRefusedError("the broker is away")
        self.broker.connections.append(self)
        process.sessions.append(self)

    def release(self) -> None:
        """Disconnect."""
        self.lose()

    def lose(self) -> None:
        """Be cut off."""
        if not self.lost:
            self.lost = True
            if self in self.broker.connections:
                self.broker.connections.remove(self)
                if not self.process.dead:
                    self.process.sessions.remove(self)
            self._wake(ConnectionResetError("the broker is gone"))
            self.to_broker(self.on_lost)

    # As of all sockets of a process, when it dies and when the network is reset.
    vanish = reset = lose

    def poke(self) -> None:
        """Have nobody look again."""

    def to_broker(self, call: Callable[..., object], *args: Any) -> None:
        """Send something; it comes after what was sent before."""
        self._said = max(self._said, self.process.reaches("broker"))
        self.process.world.at(self._said, call, *args)

    def from_broker(self, call: Callable[..., object], *args: Any) -> None:
        """Send something the other way."""
        self._heard = max(self._heard, self.process.reaches("broker"))
        self.process.world.at(self._heard, call, *args)

    def send(self, messages: list[Message]) -> None:
        """Send messages, and wait until the broker has taken them."""
        process, world = self.process, self.process.world
        process.step("PUBLISH")
        if self.lost:
            raise ConnectionResetError("the broker is gone")
        self.to_broker(self._arrive, messages)
        thread = running()
        self._wake = thread.waker()
        answer = thread.park(world.now + PATIENCE)
        self._wake = lambda _value=None: None
        if answer is TIME_UP:
            self.lose()
            raise TimeoutError("the broker does not answer")
        if answer is not None:
            raise answer

    def _arrive(self, messages: list[Message]) -> None:
        # What is on its way arrives, even if who has sent it has died.
        if self.broker.up and (self in self.broker.connections or self.process.dead):
            self.broker.take(messages)
            self.process.trapped("PUBLISH", "answer")
            if not self.lost:
                self.from_broker(self._confirm)

    def _confirm(self) -> None:
        self._wake(None)


class SimCourier(Courier):
    """Takes the place of the relay's courier."""

    def __init__(self, app: Any) -> None:
        """Prepare."""
        self._app = app
        self._connection: Connection | None = None
        self.may_take_some = False
        self._messages: list[Message] = []

    @contextmanager
    def batch(self) -> Iterator[Any]:
        """Give what messages are put on; at the end, send them."""
        self._messages = []
        try:
            if self._connection is None:
                self._connect()
            yield self._messages
            assert self._connection is not None
            if self._messages:
                self._connection.send(self._messages)
        except TimeoutError as error:
            self.close()
            raise BrokerAway(repr(error)) from error
        except OSError as error:
            self.close()
            raise Cut(repr(error)) from error

    def reachable(self) -> bool:
        """Tell whether the broker can be connected to."""
        try:
            if self._connection is None:
                self._connect()
        except OSError:
            return False
        return True

    def is_of_connection(self, error: BaseException) -> bool:
        """Tell whether an error says something of the connection."""
        return isinstance(error, OSError)

    def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    def _connect(self) -> None:
        connection = self._app.connection_for_write()
        connection.ensure_connection()
        self._connection = connection
