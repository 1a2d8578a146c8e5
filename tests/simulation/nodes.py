"""The workers of a simulation, each put together by the package itself."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery.beat import Scheduler

from celery_pgleader.config import Config
from celery_pgleader.worker.participant import Participant
from tests.simulation.broker import Connection, Message
from tests.simulation.worker import MAIN, MainLoop, Task
from tests.simulation.world import BEGINNING, Datetime, Process

if TYPE_CHECKING:
    from tests.simulation.scene import Scene


class Queues(dict[str, Any]):
    """Stands for the queues that an app knows: all of them."""

    consume_from = ()

    def deselect(self, _names: list[str]) -> None:
        """Consume none of these."""

    def __contains__(self, _name: object) -> bool:
        """Know it."""
        return True

    def __missing__(self, name: str) -> SimpleNamespace:
        """Return a queue."""
        return SimpleNamespace(name=name, exchange=SimpleNamespace(type="direct"))


class App:
    """Stands for a Celery app: what it is configured with, and how it sends."""

    timezone = BEGINNING.tzinfo
    amqp = SimpleNamespace(Producer=lambda connection, **_: connection, queues=Queues())

    def __init__(self, scene: Scene, process: Process) -> None:
        """Make the app of a process."""
        self._scene = scene
        self._process = process
        self.tasks: dict[str, Any] = {"leader only": Task()} if scene.history.works else {}
        self.conf = SimpleNamespace(
            beat_max_loop_interval=0,
            beat_sync_every=0,
            beat_schedule={
                name: {"task": f"task of {name}", "schedule": timedelta(seconds=seconds)}
                for name, seconds in scene.history.schedule.items()
            },
            result_expires=None,
            enable_utc=True,
        )

    def now(self) -> Any:
        return Datetime.now(self.timezone)

    def connection_for_write(self, **_: Any) -> Connection:
        return Connection(self._scene.broker, self._process)

    connection_for_read = connection_for_write

    def send_task(self, *_: Any, producer: Connection, task_id: str, headers: dict[str, Any], **_options: Any) -> None:
        producer.publish(Message(task_id, headers))


class Node:
    """A worker on a host, that may be started again after it was killed."""

    def __init__(self, scene: Scene, name: str, config: Config) -> None:
        """Prepare."""
        self.scene = scene
        self.world = scene.world
        self.name = name
        self.config = config
        self.process: Process = scene.world.process
        self.participant: Any = None

    def __str__(self) -> str:
        """Return its name."""
        return self.name

    @property
    def is_up(self) -> bool:
        """Whether its process lives."""
        return self.participant is not None and not self.process.dead

    @property
    def trusted_term(self) -> int | None:
        """The term that it trusts itself to lead, or none."""
        term = self.process.asked(lambda: self.participant.leadership.term) if self.is_up else None
        return term.number if term is not None else None

    def start(self) -> None:
        """Start a process, in which the worker stands for the election, unless there is one."""
        if not self.is_up:
            random = self.world.random
            self.process = Process(self.world, self.name, random.uniform(0.99, 1.01), random.uniform(0, 1000))
            self.process.wall = random.uniform(-0.3, 0.3)
            self.world.processes.append(self.process)
            self.world.tell(self.name, "is started")
            self.process.asked(self._start)

    def _start(self) -> None:
        app = App(self.scene, self.process)
        worker = SimpleNamespace(app=app, hostname=self.name, scheduler=Scheduler, schedule_filename="")
        self.participant = Participant(worker, self.config)
        self.process.page.written = lambda: self.scene.checks.on_trust(self)
        self.participant.start()
        if self.scene.history.works:
            self.process.run(MainLoop(self, self.process, app).run, MAIN)

    def forget(self) -> None:
        """Have no process any more, whatever becomes of it."""
        self.participant = None

    def resign(self) -> None:
        """Let another node lead, as an operator asks for it."""
        self.process.asked(self.participant._elector.resign)  # noqa: SLF001 - as remote control will

    def restart(self, when: float) -> None:
        """End the process as a warm shutdown does, and start another, at `when` or later."""
        process, participant = self.process, self.participant
        self.world.tell(self, "is told to stop")
        process.asked(participant.wind_down)

        def end() -> None:
            if process.worker is not None:
                process.worker.stop()
                process.worker.stopped.wait()
            else:
                participant.drain()
                participant.stop()
            process.kill()
            self.world.at(max(when, self.world.now), self.start)

        process.run(end, "shutdown")
