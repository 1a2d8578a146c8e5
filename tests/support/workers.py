"""Real `celery worker` processes, and what they told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import Celery

from celery_pgleader.config import Config
from celery_pgleader.election.observer import Seat, observe
from tests.support.eventually import eventually

PATIENCE = 60.0
APP = "tests.acceptance.proj"
ELECTION = "proj"


class Worker:
    """One `celery worker` and the children of its pool."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        """Start it."""
        self.node = name
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def __repr__(self) -> str:
        """Show what a failed test needs."""
        return f"<{self.node}: exit code {self.process.poll()}, log ends {self._log_end(2000)!r}>"

    def is_ready(self) -> bool:
        """Tell whether it consumes."""
        assert self.process.poll() is None, self
        return f"{self.node} ready." in self.log.read_text(errors="replace")

    def await_line(self, words: str, times: int = 1) -> None:
        """Wait until a line with these words was logged so many times."""
        eventually(lambda: self.log.read_text(errors="replace").count(words) >= times, timeout=PATIENCE)

    def send(self, number: int) -> None:
        """Send a signal to the main process."""
        self.process.send_signal(number)

    def wait(self) -> float:
        """Wait until it has ended; return how many seconds that took."""
        began = time.monotonic()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.node} has not ended: {self.tell_where()}") from None
        return time.monotonic() - began

    def tell_where(self) -> str:
        """Return its log, with where each of its threads is."""
        self.process.send_signal(signal.SIGUSR2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        return self.log.read_text(errors="replace")[-30000:]

    def end(self) -> None:
        """Leave no process of it behind; a failed test shows how it fared."""
        print(f"{self.node}: exit code {self.process.poll()}, log ends\n{self._log_end(6000)}")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _log_end(self, characters: int) -> str:
        return self.log.read_text(errors="replace")[-characters:]


class Workers:
    """Workers of one app, on one broker and one database."""

    def __init__(
        self, folder: Path, database: str, broker: str, pool: str = "prefork", election: str = ELECTION
    ) -> None:
        """Begin without a worker."""
        self._folder = folder
        self._pool = pool
        self.election = election
        self._config = Config(database_url=database, election=election)
        self._facts = folder / "facts"
        self._facts.touch()
        self.workers: list[Worker] = []
        self.environment = {
            **os.environ,
            "PROJ_BROKER": broker,
            "PROJ_FACTS": str(self._facts),
            "PROJ_SCHEDULE": str(folder / "schedule"),
            "PGLEADER_DATABASE_URL": database,
            "PGLEADER_ELECTION": election,
            "PGLEADER_TTL": "3",
            # The system's fork check is about threads that are only ever used by the parent.
            "PYTHONWARNINGS": "ignore",
        }
        self.sender = Celery("proj", broker=broker, set_as_current=False)

    def start(self, name: str, *options: str, app: str = APP, pgleader: bool = True) -> Worker:
        """Start a worker, and wait until it consumes."""
        node = f"{name}@test"
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-n", node, "-P", self._pool, "-c", "2"]
        return self.run(node, [*command, "-l", "INFO", *(["--pgleader"] if pgleader else []), *options])

    def run(self, node: str, command: Sequence[str]) -> Worker:
        """Start a program that runs a worker, and wait until that consumes."""
        worker = Worker(node, command, self.environment, self._folder / f"{node}.log")
        self.workers.append(worker)
        eventually(worker.is_ready, timeout=PATIENCE)
        return worker

    def write(self, name: str, code: str) -> Path:
        """Write a module that the workers can import; return its path."""
        module = self._folder / f"{name}.py"
        module.write_text(code)
        self.environment["PYTHONPATH"] = os.pathsep.join([str(self._folder), str(Path.cwd())])
        return module

    def facts(self, what: str | None = None, **equal: Any) -> list[dict[str, Any]]:
        """Return what was told, in order."""
        # The last line may be half there.
        whole, _, _ = self._facts.read_text().rpartition("\n")
        told = [json.loads(line) for line in whole.splitlines()]
        return [
            fact
            for fact in told
            if (what is None or fact["what"] == what) and all(fact[key] == value for key, value in equal.items())
        ]

    def await_fact(self, what: str, *, more_than: int = 0, **equal: Any) -> dict[str, Any]:
        """Wait until something was told more often than so many times; return it."""
        eventually(lambda: len(self.facts(what, **equal)) > more_than, timeout=PATIENCE)
        return self.facts(what, **equal)[more_than]

    def seats(self) -> list[Seat]:
        """Return who leads and who is next, as Postgres has it."""
        return observe(self._config)

    def await_leader(self, *, other_than: Worker | None = None) -> Worker:
        """Wait until a worker leads."""

        def leading() -> list[Worker]:
            nodes = [seat.node for seat in self.seats() if seat.role == "leader"]
            return [worker for worker in self.workers if worker.node in nodes and worker is not other_than]

        eventually(leading, timeout=PATIENCE)
        return leading()[0]

    def await_successors(self, number: int) -> None:
        """Wait until so many wait for the lock."""
        eventually(lambda: len([s for s in self.seats() if s.role == "successor"]) == number, timeout=PATIENCE)

    def send(self, task: str, *args: Any, **options: Any) -> str:
        """Send a task as a program would that knows nothing of the package."""
        task_id: str = self.sender.send_task(f"proj.{task}", args, **options).id
        return task_id

    def end(self) -> None:
        """Leave no process behind."""
        for worker in self.workers:
            worker.end()
        self.sender.close()
