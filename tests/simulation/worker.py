"""The part of a Celery worker that consumes: its main loop, a pool, and the page between them.

The leader queue is the package's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery.exceptions import Reject

from celery_pgleader.tasks import strategy
from celery_pgleader.tasks.request import LeaderRequest
from celery_pgleader.tasks.run_guard import RunGuard
from celery_pgleader.tasks.trust_page import SIZE, TrustPage, TrustReader
from tests.simulation.broker import Connection, Delivery
from tests.simulation.world import Event, Process, running, sleep, world

if TYPE_CHECKING:
    from tests.simulation.nodes import Node

CHILDREN = 2
RECONNECT = 0.3
# The name of the thread in which a worker's main loop runs.
MAIN = "main"


class State:
    """Takes the place of `celery.worker.state`: what the worker of the running process has received, and runs."""

    @property
    def reserved_requests(self) -> set[Request]:
        return _worker().reserved

    @property
    def active_requests(self) -> set[Request]:
        return _worker().active

    def task_ready(self, request: Request) -> None:
        _worker().reserved.discard(request)
        _worker().active.discard(request)


def _worker() -> MainLoop:
    worker: MainLoop = world().process.worker
    return worker


class Page(TrustPage):
    """The page of the running process: in no file, and with runs that need no lock to be seen."""

    _memory: Any

    def __init__(self) -> None:
        """Make it."""
        self._memory = bytearray(SIZE)
        self.runs: set[BegunRun] = set()
        # What the worker's own process also asks.
        self.trusted: Callable[[], bool] = lambda: True
        # Called whenever it is written.
        self.written: Callable[[], object] = lambda: None
        world().process.page = self

    def write(self, term: int, trusted_until: float) -> None:
        super().write(term, trusted_until)
        self.written()

    def has_runs(self) -> bool:
        return bool(self.runs)

    def close(self) -> None:
        self.write(0, 0.0)


@dataclass(frozen=True, eq=False)
class BegunRun:
    """A run that is going on."""

    page: Page
    term: int

    def end(self) -> None:
        self.page.runs.discard(self)


class Reader(TrustReader):
    """What reads the page of the running process; as a child of the pool, unless it is the main loop that asks."""

    def also_ask(self, trusted: Callable[[], bool]) -> None:
        world().process.page.trusted = trusted

    def term(self) -> int | None:
        thread = world().thread
        if thread is not None and thread.name == MAIN and not world().process.page.trusted():
            return None
        return super().term()

    def begin(self) -> Any:
        term, page = self.term(), world().process.page
        if term is None or not self.may_begin():
            return None
        run = BegunRun(page, term)
        page.runs.add(run)
        return run

    def _page(self) -> Any:
        return world().process.page._memory  # noqa: SLF001 - its other side


class Request(LeaderRequest):
    """Stands for Celery's request of a message."""

    def __init__(self, message: Delivery, task: Any) -> None:
        """Wrap a message."""
        self._message, self._task, self._expires = message, task, None
        self._request_dict: dict[str, Any] = {}
        self.id = str(message.key)
        self._apply_result: object = None

    def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - as in the base class
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

    def __init__(self, node: Node, process: Process, app: Any) -> None:
        """Prepare."""
        self.process = process
        process.worker = self
        self.app = app
        self.controller = SimpleNamespace(pgleader=node.participant)
        self.task_consumer: Any = self
        self.pool = None
        self.timer = SimpleNamespace(schedule=SimpleNamespace(queue=[]))
        self.connection: Connection | None = None
        self.reserved: set[Request] = set()
        self.active: set[Request] = set()
        self.stopped = Event()
        self._scene = node.scene
        self._participant = node.participant
        self._guard = RunGuard(node.config, "simulated")
        self._queue = node.scene.queue
        self._calls: deque[Callable[[], object]] = deque()
        self._called = Event()
        self._pool: deque[Request] = deque()
        self._wanted = Event()
        self._stopping = self._consuming = False
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
                self._answer_calls()
            self._participant.leader_queue.detach()
        self._drain()

    def _answer_calls(self, seconds: float | None = None) -> None:
        self._called.wait(seconds)
        self._called.clear()
        while self._calls:
            self._calls.popleft()()

    def stop(self) -> None:
        """Stop as a warm shutdown does: consume no more, and let what runs come to its end."""
        self.call_soon(self._stop)

    def _stop(self) -> None:
        self._stopping = True
        # As the step's `close` does, before the consumer is stopped.
        self._participant.drain()

    def _drain(self) -> None:
        self.cancel_task_queue("")
        while self.active or self._pool:
            self._answer_calls(RECONNECT)
        # What was received and has not begun goes back with the connection.
        if self.connection is not None:
            self.connection.release()
        self._participant.stop()
        self.stopped.set()

    def _on_lost(self, connection: Connection) -> None:
        self._queue.lost(connection)
        if not self.process.dead:
            self._called.set()

    # What the package's leader queue asks of a consumer.

    def call_soon(self, call: Callable[[], object]) -> None:
        self._calls.append(call)
        self._called.set()

    def consuming_from(self, _name: str) -> bool:
        return self._consuming

    def add_task_queue(self, _name: str) -> None:
        self._consuming = True
        self._send(lambda connection: self._queue.subscribe(connection, self.receive))

    def cancel_task_queue(self, _name: str) -> None:
        self._consuming = False
        self._send(self._queue.unsubscribe)

    def _send(self, call: Callable[[Connection], object]) -> None:
        connection = self.connection
        if connection is not None:
            connection.to_peer(lambda: None if connection.lost else call(connection))

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
            self.call_soon(partial(self._ended, request, self._run(request)))

    def _ended(self, request: Request, end: Callable[[], object]) -> None:
        State().task_ready(request)
        end()

    def _run(self, request: Request) -> Callable[[], object]:
        """Run a task; return what then becomes of its message."""
        self.process.step("RUN")
        try:
            self._guard.before_start(request.task, request.id)
        except Reject as reject:
            requeue = bool(reject.args[1])
            return lambda: request.message.reject(requeue=requeue)
        leadership: Any = request.task.request
        run = Run(request.message.key, leadership.pgleader_leadership.term, self.process, self.process.world.now)
        self._scene.checks.on_run(run)
        sleep(self._scene.history.works[run.key][1])
        running()
        self._scene.checks.on_end(run)
        self._guard.after_run(request.task, "SUCCESS")
        ack: Callable[[], object] = request.message.ack
        return ack


def default_strategy(_task: object, _app: object, consumer: MainLoop, **_: object) -> Callable[..., object]:
    """Take the place of Celery's own way from a message to the pool."""
    return lambda message, *_args, **_options: consumer.accept(message)
