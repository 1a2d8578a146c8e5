"""The workers of a simulation, each put together by the package itself, and what they talk to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from celery.beat import Scheduler

from celery_pgleader.config import Config
from celery_pgleader.worker.participant import Participant
from tests.simulation.broker import Broker, Connection, Message
from tests.simulation.server import Server
from tests.simulation.trust import MAIN
from tests.simulation.worker import MainLoop, Queue, Task
from tests.simulation.world import BEGINNING, Datetime, Process, World

DEFAULT_QUEUE = "celery"


class Queues(dict[str, Any]):
    """Stands for the queues that an app knows."""

    consume_from = ()

    def deselect(self, _names: list[str]) -> None:
        """Consume none of these."""

    def __contains__(self, _name: object) -> bool:
        """Know all of them."""
        return True

    def __missing__(self, name: str) -> SimpleNamespace:
        """Return a queue."""
        return SimpleNamespace(name=name, exchange=SimpleNamespace(type="direct"))


class App:
    """Stands for a Celery app: what it is configured with, and how it sends."""

    timezone = BEGINNING.tzinfo

    def __init__(self, broker: Broker, process: Process, schedule: dict[str, float], *, works: bool) -> None:
        """Make the app of a process, with a leader-only task if it `works`."""
        self._broker = broker
        self._process = process
        self.tasks: dict[str, Any] = {"leader only": Task()} if works else {}
        self.conf = SimpleNamespace(
            beat_max_loop_interval=0,
            beat_sync_every=0,
            beat_schedule={
                name: {"task": f"task of {name}", "schedule": timedelta(seconds=seconds)}
                for name, seconds in schedule.items()
            },
            result_expires=None,
            enable_utc=True,
        )
        self.amqp = SimpleNamespace(
            Producer=lambda connection, **_: connection,
            queues=Queues(),
        )

    def now(self) -> Any:
        """Return what the clock of the process shows."""
        return Datetime.now(self.timezone)

    def connection_for_write(self, **_: Any) -> Connection:
        """Return a connection that is not connected yet."""
        return Connection(self._broker, self._process)

    connection_for_read = connection_for_write

    def send_task(self, name: str, args: Any = (), kwargs: Any = None, *, producer: Any, **options: Any) -> None:
        """Send a message, or put it on the load of a batch."""
        message = Message(
            options.get("queue") or DEFAULT_QUEUE, name, options["task_id"], options["headers"], tuple(args)
        )
        if isinstance(producer, list):
            producer.append(message)
        else:
            producer.send([message])


class Node:
    """A worker on a host, that may be started again after it was killed."""

    def __init__(
        self,
        world: World,
        server: Server,
        broker: Broker,
        name: str,
        config: Config,
        schedule: dict[str, float],
        queue: Queue | None = None,
        work: Callable[..., float] | None = None,
    ) -> None:
        """Prepare; see `start` and `MainLoop`."""
        self.world = world
        self.name = name
        self.config = config
        self.process: Process | None = None
        self.participant: Any = None
        # Called with each process that is started, and whenever what it trusts changes.
        self.trusts: Callable[[Node], object] = lambda _node: None
        self._server = server
        self._broker = broker
        self._schedule = schedule
        self._queue = queue
        self._work = work

    @property
    def is_up(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and not self.process.dead

    @property
    def trusted_term(self) -> int | None:
        """The term that it trusts itself to lead, or none."""
        if self.process is None or self.process.dead:
            return None
        term = self.process.asked(lambda: self.participant.leadership.term)
        return term.number if term is not None else None

    def start(self) -> None:
        """Start a process, in which the worker stands for the election, unless there is one."""
        if self.is_up:
            return
        random = self.world.random
        process = self.process = Process(self.world, self.name, random.uniform(0.99, 1.01), random.uniform(0, 1000))
        process.wall = random.uniform(-0.3, 0.3)
        self.world.processes.append(process)
        worker = SimpleNamespace(
            app=App(self._broker, process, self._schedule, works=self._queue is not None),
            hostname=self.name,
            scheduler=Scheduler,
            schedule_filename="",
        )

        def start() -> None:
            self.participant = Participant(worker, self.config)
            process.page.written = lambda: self.trusts(self)
            self.participant.start()
            if self._queue is not None:
                loop = MainLoop(process, worker.app, self.participant, self.config, self._queue, self._work)
                process.run(loop.run, MAIN)

        self.world.tell(self.name, "is started")
        process.asked(start)

    def resign(self) -> None:
        """Let another node lead, as an operator asks for it."""
        self.participant._elector.resign()  # noqa: SLF001 - as remote control will

    def restart(self, when: float) -> None:
        """End the process as a warm shutdown does, and start another, at `when` or later."""
        process, participant = self.process, self.participant
        assert process is not None
        self.world.tell(self, "is told to stop")
        process.asked(participant.wind_down)

        def end() -> None:
            if process.worker is not None:
                process.worker.stop()
                process.worker.await_end()
            else:
                participant.drain()
                participant.stop()
            process.kill()
            self.world.at(max(when, self.world.now), self.start)

        process.run(end, "shutdown")

    def __str__(self) -> str:
        """Return its name."""
        return self.name
