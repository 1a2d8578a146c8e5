"""The demo's processes: real `celery worker --pgleader` commands, and the customers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from example_app.servers import dies_with_parent
from example_app.waiting import wait_until

REPOSITORY = Path(__file__).parent.parent
STOP_TIMEOUT = 10.0


@dataclass
class Worker:
    """A worker, through all the processes that bear its name one after the other.

    Attributes:
        name: its number in the fleet.
        process: the present one.
        pids: all processes so far, the present one last.

    """

    name: str
    process: subprocess.Popen[bytes]
    pids: list[int] = field(default_factory=list)

    @property
    def node(self) -> str:
        """The Celery node name."""
        return f"{self.name}@shop"

    @property
    def is_running(self) -> bool:
        """Whether the present process has not ended."""
        return self.process.poll() is None


class Cluster:
    """Starts processes and sees that none of them outlives the demo."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        """Prepare; nothing runs before it is started.

        Args:
            folder: where logs and the schedule file go.
            env: what processes need to know, on top of this one's environment.

        """
        self._folder = folder
        python_path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        # A killed worker leaves temporary files behind; here they go with the folder.
        self._env = {**os.environ, **env, "PYTHONPATH": python_path, "TMPDIR": str(folder)}
        self._customers: subprocess.Popen[bytes] | None = None
        self._dashboard: subprocess.Popen[bytes] | None = None
        self.workers: list[Worker] = []

    def start_workers(self, count: int) -> None:
        """Start that many workers."""
        for number in range(1, count + 1):
            name = f"worker{number}"
            process = self._start_worker(name)
            self.workers.append(Worker(name, process, [process.pid]))

    def revive(self) -> Iterator[Worker]:
        """Start a new process for each worker whose process has ended; yield those workers."""
        for worker in self.workers:
            if not worker.is_running:
                worker.process = self._start_worker(worker.name)
                worker.pids.append(worker.process.pid)
                yield worker

    def by_node(self, node: str) -> Worker | None:
        """Return the worker with that Celery node name."""
        return next((worker for worker in self.workers if worker.node == node), None)

    def start_customers(self) -> None:
        """Open the shop."""
        self._customers = self._start("customers", [sys.executable, "-m", "example_app.customers"])

    def start_dashboard(self) -> str | None:
        """Serve the dashboard; return its address, or none if it could not be started."""
        command = [sys.executable, "-m", "celery", "-A", "example_app.shop", "pgleader", "dashboard"]
        self._dashboard = dashboard = self._start("dashboard", [*command, "--bind", "127.0.0.1:0"])
        log = self._folder / "dashboard.log"

        def address() -> str | None:
            found = re.search(r"http://\S+", log.read_text())
            return found[0] if found else None

        wait_until(lambda: address() or dashboard.poll() is not None, STOP_TIMEOUT)
        return address()

    def stop_customers(self) -> bool:
        """Close the shop; tell whether the customers behaved until then."""
        customers, self._customers = self._customers, None
        if customers is None:
            return True
        behaved = customers.poll() is None
        _stop([customers], STOP_TIMEOUT)
        return behaved

    def stop_workers(self, timeout: float = STOP_TIMEOUT) -> bool:
        """Stop the workers with TERM, and kill what is left after `timeout` seconds; tell whether none was."""
        return _stop([worker.process for worker in self.workers], timeout)

    def kill(self) -> None:
        """End everything at once."""
        processes = [worker.process for worker in self.workers]
        _stop([*processes, *filter(None, [self._customers, self._dashboard])], 0)

    def last_words(self, lines: int = 5) -> str:
        """Return the end of each log."""
        parts = []
        for path in sorted(self._folder.glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"-- {path.name}", *tail]))
        return "\n".join(parts)

    def _start_worker(self, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "celery", "-A", "example_app.shop", "worker", "--pgleader"]
        # Nobody needs the schedule file, but whoever runs the demo shall not find it in their own folder.
        file = str(self._folder / "schedule")
        options = ["-n", f"{name}@shop", "-s", file, "--concurrency=2", "--loglevel=INFO", "--without-mingle"]
        return self._start(name, [*command, *options])

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            # A session of its own: Ctrl-C is for the demo alone, which then stops the others in order.
            return subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )


def _stop(processes: list[subprocess.Popen[bytes]], timeout: float) -> bool:
    """Send TERM, wait, and kill the process groups of what is left; tell whether nothing was."""
    if timeout:
        for process in processes:
            process.terminate()
    deadline = time.monotonic() + timeout
    ended_by_themselves = True
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
            continue
        ended_by_themselves = False
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return ended_by_themselves
