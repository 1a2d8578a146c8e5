"""The part of a Celery worker that consumes: its main loop, and a pool. The leader queue is the package's own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

from celery.exceptions import Reject

from celery_pgleader.config import Config
from celery_pgleader.tasks import strategy
from celery_pgleader.tasks.request import LeaderRequest
from celery_pgleader.tasks.run_guard import RunGuard
from tests.simulation.broker import Connection
from tests.simulation.world import Event, Process, running, sleep, world

CHILDREN = 2
# As many as Celery takes ahead of what runs.
PREFETCH = 4
RECONNECT = 0.3


class State:
    """Takes the place of `celery.worker.state`: what the worker of the running process has received, and runs."""

    @property
    def reserved_requests(self) -> set[Any]:
        """What was received and has not ended."""
        requests: set[Any] = world().process.worker.reserved
        return requests

    @property
    def active_requests(self) -> set[Any]:
        """What runs."""
        requests: set[Any] = world().process.worker.active
        return requests

    def task_ready(self, request: Any) -> None:
        """Forget a request."""
        self.reserved_requests.discard(request)
        self.active_requests.discard(request)


Receive: TypeAlias = "Callable[[Delivery], object]"


@dataclass(eq=False)
class Delivery:
    """A message as the broker gives it to a consumer; stands for kombu's."""

    key: int
    queue: Queue
    connection: Connection
    delivery_info: dict[str, str]

    def ack(self) -> None:
        """Be done with it."""
        self._tell(self.queue.acknowledge)

    def reject_log_error(self, _logger: object, _errors: object, *, requeue: bool) -> None:
        """Give it back."""
        self.reject(requeue=requeue)

    def reject(self, *, requeue: bool) -> None:
        """Give it back, or let it be dropped."""
        self._tell(self.queue.give_back if requeue else self.queue.acknowledge)

    def _tell(self, call: Callable[[Delivery], object]) -> None:
        if not self.connection.lost:
            self.connection.to_broker(call, self)


class Queue:
    """A queue of the broker: each message is given to a consumer, and to another if that one is gone."""

    def __init__(self, name: str) -> None:
        """Begin empty."""
        self.name = name
        self.waiting: deque[int] = deque()
        self.given: dict[int, Delivery] = {}
        self._consumers: dict[Connection, Receive] = {}

    def put(self, key: int) -> None:
        """Take a message."""
        self.waiting.append(key)
        self._deliver()

    def subscribe(self, connection: Connection, receive: Receive) -> None:
        """Have a connection get messages."""
        self._consumers[connection] = receive
        self._deliver()

    def unsubscribe(self, connection: Connection) -> None:
        """Have a connection get no more."""
        self._consumers.pop(connection, None)

    def acknowledge(self, delivery: Delivery) -> None:
        """Forget a message."""
        if self.given.get(delivery.key) is delivery:
            del self.given[delivery.key]
            self._deliver()

    def give_back(self, delivery: Delivery) -> None:
        """Have a message again, in front of the others."""
        if self.given.get(delivery.key) is delivery:
            del self.given[delivery.key]
            self.waiting.appendleft(delivery.key)
            self._deliver()

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
                connection.from_broker(receive, delivery)


class Request(LeaderRequest):
    """Stands for Celery's request of a message."""

    def __init__(self, message: Delivery, task: Any) -> None:
        """Wrap a message."""
        self._message, self._task, self._expires = message, task, None
        self._request_dict: dict[str, Any] = {}
        self.id = str(message.key)
        self._apply_result: object = None

    def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - as in the base class
        """Give the message back."""
        self.message.reject(requeue=requeue)


class Task:
    """Stands for a leader-only task, and its request while it runs."""

    leader_only = True
    name = "leader only"

    def __init__(self) -> None:
        """Begin without anything in the request."""
        self.request = SimpleNamespace(get=lambda _name: None)


@dataclass(frozen=True)
class Run:
    """A run of a leader-only task."""

    key: int
    term: int
    process: Process
    began: float


class MainLoop:
    """The main loop of a worker, which is also its consumer; and its pool."""

    connection_errors = (OSError,)

    def __init__(self, process: Process, app: Any, participant: Any, config: Config, queue: Queue, work: Any) -> None:
        """Prepare.

        Args:
            process: in which it runs.
            app: the app.
            participant: the worker's part in the election.
            config: of the election.
            queue: the leader queue.
            work: called with a run that begins and returns for how long it lasts; and with one that has ended.

        """
        self.process = process
        process.worker = self
        self.app = app
        self.controller = SimpleNamespace(pgleader=participant)
        self.task_consumer: Any = self
        self.pool = None
        self.timer = SimpleNamespace(schedule=SimpleNamespace(queue=[]))
        self.connection: Connection | None = None
        self.reserved: set[Request] = set()
        self.active: set[Request] = set()
        self._participant = participant
        self._guard = RunGuard(config, "simulated")
        self._queue = queue
        self._work = work
        self._calls: deque[Callable[[], object]] = deque()
        self._called = Event()
        self._pool: deque[Request] = deque()
        self._wanted = Event()
        self._stopping = False
        self._stopped = Event()
        self._handle = strategy.leader_only(Task(), app, self)

    def run(self) -> None:
        """Consume until told to stop; connect again whenever the connection is lost."""
        for number in range(CHILDREN):
            self.process.run(self._child, f"child {number}")
        while not self._stopping:
            self.connection = self.app.connection_for_read()
            try:
                self.connection.ensure_connection()
            except OSError:
                sleep(RECONNECT)
                continue
            self.connection.on_lost = lambda connection=self.connection: self._on_lost(connection)
            # As when Celery's consumer is closed: what has not begun is forgotten.
            self._pool.clear()
            self.reserved = set(self.active)
            self._consuming = False
            self._participant.leader_queue.attach(self)
            while not self._stopping and not self.connection.lost:
                self._called.wait()
                self._called.clear()
                while self._calls and not self._stopping:
                    self._calls.popleft()()
            self._participant.leader_queue.detach()
        self._drain()

    def stop(self) -> None:
        """Stop as a warm shutdown does: consume no more, and let what runs come to its end."""
        self.call_soon(self._stop)

    def _stop(self) -> None:
        self._stopping = True
        # As the step's `close` does, before the consumer is stopped.
        self._participant.drain()

    def _drain(self) -> None:
        self._send(self._queue.unsubscribe)
        while self.active or self._pool:
            self._called.wait(RECONNECT)
            self._called.clear()
            while self._calls:
                self._calls.popleft()()
        # What was received and has not begun goes back with the connection.
        if self.connection is not None:
            self.connection.release()
        self._participant.stop()
        self._stopped.set()

    def await_end(self) -> None:
        """Wait until it has stopped."""
        self._stopped.wait()

    def _on_lost(self, connection: Connection) -> None:
        self._queue.lost(connection)
        if not self.process.dead:
            self._called.set()

    # What the package's leader queue asks of a consumer.

    def call_soon(self, call: Callable[[], object]) -> None:
        """Have something called in the main loop."""
        self._calls.append(call)
        self._called.set()

    def consuming_from(self, _name: str) -> bool:
        """Tell whether it has asked for the queue's messages."""
        return self._consuming

    _consuming = False

    def add_task_queue(self, _name: str) -> None:
        """Ask for the queue's messages."""
        self._consuming = True
        self._send(lambda connection: self._queue.subscribe(connection, self.receive))

    def cancel_task_queue(self, _name: str) -> None:
        """Ask for no more of them."""
        self._consuming = False
        self._send(self._queue.unsubscribe)

    def _send(self, call: Callable[[Connection], object]) -> None:
        connection = self.connection
        if connection is not None:
            connection.to_broker(lambda: None if connection.lost else call(connection))

    # From a message to its end.

    def receive(self, delivery: Delivery) -> None:
        """Have the main loop handle a message, unless the connection is lost by then."""
        if not self.process.dead:
            self.call_soon(lambda: self._receive(delivery))

    def _receive(self, delivery: Delivery) -> None:
        if delivery.connection is self.connection:
            self._handle(delivery, None, None, None, None)

    def accept(self, message: Delivery) -> None:
        """Hand a message to the pool, as Celery's own strategy does."""
        request = Request(message, Task())
        self.reserved.add(request)
        if not request.revoked():
            request._apply_result = request  # noqa: SLF001 - as Celery does
            self._pool.append(request)
            self._wanted.set()

    def _child(self) -> None:
        while True:
            while not self._pool:
                self._wanted.clear()
                self._wanted.wait()
            request = self._pool.popleft()
            self.active.add(request)
            self._run(request)

    def _run(self, request: Request) -> None:
        self.process.step("RUN")
        try:
            self._guard.before_start(request.task, request.id)
        except Reject as reject:
            requeue = bool(reject.args[1])
            self.call_soon(lambda: self._ended(request, lambda: request.message.reject(requeue=requeue)))
            return
        leadership: Any = request.task.request
        term = leadership.pgleader_leadership.term
        run = Run(request.message.key, term, self.process, self.process.world.now)
        sleep(self._work(run, ended=False))
        running()
        self._work(run, ended=True)
        self._guard.after_run(request.task, "SUCCESS")
        self.call_soon(lambda: self._ended(request, request.message.ack))

    def _ended(self, request: Request, call: Callable[[], object]) -> None:
        State().task_ready(request)
        call()


def default_strategy(_task: object, _app: object, consumer: MainLoop, **_: object) -> Callable[..., object]:
    """Take the place of Celery's own way from a message to the pool."""
    return lambda message, *_args, **_options: consumer.accept(message)
