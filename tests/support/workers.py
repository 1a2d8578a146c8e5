"""Real `celery worker` processes, and what they told."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from celery import Celery

from celery_pgleader.config import Config
from celery_pgleader.election.observer import Seat, seats
from celery_pgleader.postgres import Session, open_session
from celery_pgleader.tasks import queue_name
from tests.support.eventually import eventually
from tests.support.programs import Program, Tail

PATIENCE = 60.0
APP = "tests.acceptance.proj"
ELECTION = "proj"
# A worker with these is ready a second sooner, and neither has to do with the election.
QUICK = ("--without-gossip", "--without-mingle", "--without-heartbeat")

Answer = TypeVar("Answer")


class Worker(Program):
    """One `celery worker` and the children of its pool."""

    @property
    def node(self) -> str:
        """Its node name."""
        return self.name

    def is_ready(self) -> bool:
        """Tell whether it consumes."""
        assert self.process.poll() is None, self
        return self.has_logged(f"{self.node} ready.")

    def kill(self) -> None:
        """End its main process with `kill -9`."""
        self.send(signal.SIGKILL)
        self.process.wait()


class Workers:
    """Workers of one app, on one broker and one database."""

    def __init__(
        self, folder: Path, database: str, broker: str, pool: str = "prefork", election: str = ELECTION
    ) -> None:
        """Begin without a worker."""
        self._folder = folder
        self._pool = pool
        self.database = database
        self.election = election
        self._config = Config(database_url=database, election=election)
        self._session: Session | None = None
        facts = folder / "facts"
        facts.touch()
        self._tail = Tail(facts)
        self._facts: list[dict[str, Any]] = []
        self.workers: list[Worker] = []
        self._gone: list[Worker] = []
        self.environment = {
            **os.environ,
            "PROJ_BROKER": broker,
            "PROJ_FACTS": str(facts),
            "PROJ_SCHEDULE": str(folder / "schedule"),
            "PGLEADER_DATABASE_URL": database,
            "PGLEADER_ELECTION": election,
            "PGLEADER_TTL": "3",
            # The system's fork check is about threads that are only ever used by the parent.
            "PYTHONWARNINGS": "ignore",
        }
        self.sender = Celery("proj", broker=broker, set_as_current=False)
        self.cleanup = ExitStack()
        self.cleanup.callback(self.sender.close)

    def configure(self, **settings: Any) -> None:
        """Have the workers that are started from now on use these settings of Celery."""
        self.environment["PROJ_SETTINGS"] = json.dumps(settings)

    def plan(self, entries: dict[str, Any], policies: dict[str, Any] | None = None, **settings: Any) -> None:
        """Give the workers that are started from now on a schedule."""
        schedule = {name: {"task": "proj.run", **entry} for name, entry in entries.items()}
        self.configure(
            beat_schedule=schedule,
            pgleader_schedule=policies or {},
            result_expires=None,
            task_acks_late=True,
            task_reject_on_worker_lost=True,
            **settings,
        )

    def start(self, name: str, *options: str, app: str = APP, pgleader: bool = True, quick: bool = True) -> Worker:
        """Start a worker, and wait until it consumes."""
        (worker,) = self.start_all([name], *options, app=app, pgleader=pgleader, quick=quick)
        return worker

    def start_all(
        self, names: Iterable[str], *options: str, app: str = APP, pgleader: bool = True, quick: bool = True
    ) -> list[Worker]:
        """Start workers side by side, and wait until all of them consume."""
        own = (*(["--pgleader"] if pgleader else []), *(QUICK if quick else ()))
        started = []
        for name in names:
            node = f"{name}@test"
            command = [sys.executable, "-m", "celery", "-A", app, "worker", "-n", node, "-P", self._pool, "-c", "2"]
            started.append(self.launch(node, [*command, "-l", "INFO", *own, *options]))
        for worker in started:
            eventually(worker.is_ready, timeout=PATIENCE)
        return started

    def launch(self, node: str, command: Sequence[str]) -> Worker:
        """Start a program that is ended with the workers."""
        worker = Worker(node, command, dict(self.environment), self._folder)
        self.workers.append(worker)
        return worker

    def run(self, node: str, command: Sequence[str]) -> Worker:
        """Start a program that runs a worker, and wait until that consumes."""
        worker = self.launch(node, command)
        eventually(worker.is_ready, timeout=PATIENCE)
        return worker

    def pair(self, *options: str, app: str = APP, quick: bool = True) -> tuple[Worker, Worker]:
        """Start two workers; return the leader and the other, once that is next in line."""
        started = self.start_all("ab", *options, app=app, quick=quick)
        self.await_successors(1)
        leader = self.await_leader()
        (other,) = (worker for worker in started if worker is not leader)
        return leader, other

    def open(self, gate: str) -> None:
        """Let tasks go on that wait at a gate."""
        (self._folder / f"gate {gate}").touch()

    def kill(self, worker: Worker) -> None:
        """End a worker with `kill -9`, and count it among these no more."""
        worker.kill()
        self.workers.remove(worker)
        self._gone.append(worker)

    def write(self, name: str, code: str) -> Path:
        """Write a module that the workers can import; return its path."""
        module = self._folder / f"{name}.py"
        module.write_text(code)
        self.environment["PYTHONPATH"] = os.pathsep.join([str(self._folder), str(Path.cwd())])
        return module

    def facts(self, what: str | None = None, **equal: Any) -> list[dict[str, Any]]:
        """Return what was told, in order."""
        self._facts += [json.loads(line) for line in self._tail.lines()[len(self._facts) :]]
        return [
            fact
            for fact in self._facts
            if (what is None or fact["what"] == what) and all(fact.get(key) == value for key, value in equal.items())
        ]

    def await_fact(self, what: str, *, more_than: int = 0, **equal: Any) -> dict[str, Any]:
        """Wait until something was told more often than so many times; return it."""

        def told() -> list[dict[str, Any]]:
            found = self.facts(what, **equal)[more_than:]
            assert found, f"no {what} of {equal} beyond {more_than}; last {self._facts[-5:]}"
            return found

        return eventually(told, timeout=PATIENCE)[0]

    def query(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask the database."""

        def ask(session: Session) -> list[tuple[Any, ...]]:
            cursor = session.execute(query.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

        return self._ask(ask)

    def seats(self) -> list[Seat]:
        """Return who leads and who is next, as Postgres has it."""
        return self._ask(lambda session: seats(self._config, session))

    def await_leader(self, *, other_than: Worker | None = None) -> Worker:
        """Wait until a worker leads."""

        def leading() -> list[Worker]:
            nodes = [seat.node for seat in self.seats() if seat.role == "leader"]
            return [worker for worker in self.workers if worker.node in nodes and worker is not other_than]

        return eventually(leading, timeout=PATIENCE)[0]

    def await_successors(self, number: int) -> None:
        """Wait until so many wait for the lock."""
        eventually(lambda: len([s for s in self.seats() if s.role == "successor"]) == number, timeout=PATIENCE)

    def end_session(self) -> None:
        """Have the leader lose its lock, while it lives on."""
        (seat,) = [seat for seat in self.seats() if seat.role == "leader"]
        self.query("select pg_terminate_backend(%s)", seat.backend_pid)

    def send(self, task: str, *args: Any, **options: Any) -> str:
        """Send a task as a program would that knows nothing of the package."""
        task_id: str = self.sender.send_task(f"proj.{task}", args, **options).id
        return task_id

    def send_to_leader(self, task: str, *args: Any, **options: Any) -> str:
        """Send a leader-only task to its queue, likewise."""
        return self.send(task, *args, queue=queue_name(self.election), **options)

    def __enter__(self) -> Workers:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind; a failed test shows how each fared."""
        for worker in (*self._gone, *self.workers):
            print(worker)
            worker.end()
        self.cleanup.close()

    def _ask(self, question: Callable[[Session], Answer]) -> Answer:
        # One session for all looks, and another when its server has gone.
        if self._session is not None and not self._session.is_alive():
            self._session.close()
            self._session = None
        if self._session is None:
            self._session = open_session(self.database, "onlooker", unresponsive_after=PATIENCE, pooled=True)
            self.cleanup.callback(self._session.close)
        return question(self._session)
