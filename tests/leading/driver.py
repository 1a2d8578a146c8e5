"""Makes the faults: leaders resign, are ended, killed, stopped and cut off, and the broker is restarted once."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
from kombu.exceptions import OperationalError

from celery_pgleader.config import Config
from celery_pgleader.election.observer import observe
from tests.leading import common
from tests.leading.count import ACKNOWLEDGED_WITHIN, ACKNOWLEDGED_WITHIN_SOLO, Count, count_tasks, read_facts
from tests.support.eventually import eventually
from tests.support.programs import Program

KINDS = ("kill", "term", "stop", "terminate", "resign", "kill main")
PATIENCE = 90.0
NODES = 3
# After so long without any run, what is missing is lost.
STANDSTILL = 15.0
PAUSE = 0.1


class Sender:
    """Sends leader-only tasks at a steady pace, from a program without the package's plugin."""

    def __init__(self, broker: str, tasks: int, seconds: float, seed: int) -> None:
        """Prepare; nothing is sent before `start`."""
        self.error: BaseException | None = None
        self._app = common.make_app(broker)
        self._tasks = tasks
        self._seconds = seconds
        self._random = random.Random(f"{seed} sender")
        self._key = 0
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def is_done(self) -> bool:
        """Tell whether all is sent."""
        if self.error is not None:
            raise AssertionError(f"the sender failed: {self.error!r}") from self.error
        return not self._thread.is_alive()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            while self._key < self._tasks:
                due = began + self._seconds * self._key / self._tasks
                threading.Event().wait(max(0.0, due - time.monotonic()))
                self._send_something()
        except BaseException as error:  # noqa: BLE001 - told by whoever waits
            self.error = error
        finally:
            self._app.close()

    def _send_something(self) -> None:
        draw = self._random.random()
        if draw < 0.1 and self._key + 3 <= self._tasks:
            first, second, third = self._signature(), self._signature(), self._signature()
            self._send(first | second | third, [self._key - 3, self._key - 2, self._key - 1])
        elif draw < 0.25:
            self._send(self._signature(), [self._key - 1], countdown=self._random.uniform(1.0, 4.0))
        else:
            self._send(self._signature(), [self._key - 1])

    def _signature(self) -> Any:
        seconds = self._random.uniform(0.2, 1.0) if self._random.random() < 0.5 else 0.0
        # Some come to the ordinary queue, and are forwarded.
        options = {} if self._random.random() < 0.2 else {"queue": common.LEADER_QUEUE}
        # So that the logs tell which it is.
        options["task_id"] = f"task-{self._key}"
        signature = self._app.signature("leading.work", [self._key, round(seconds, 2)], immutable=True, **options)
        self._key += 1
        return signature

    def _send(self, signature: Any, keys: list[int], **options: float) -> None:
        for number, key in enumerate(keys):
            common.tell("sent", key=key, due=not number and not options, after=keys[number - 1] if number else None)
        while True:
            try:
                signature.apply_async(**options)
            except (OperationalError, OSError, *self._app.connection().connection_errors):
                # Nobody knows whether it arrived.
                for key in keys:
                    common.tell("in doubt", key=key)
                threading.Event().wait(PAUSE)
            else:
                return


class Driver:
    """Workers that stand for one election, on one broker."""

    def __init__(self, database: str, broker: str, folder: Path, *, pool: str, seed: int, queues: str = "") -> None:
        """Start the workers."""
        self.kinds: dict[str, int] = Counter()
        self._config = Config(database_url=database, election=common.ELECTION)
        self._database = database
        self._broker = broker
        self._seed = seed
        self._pool = pool
        self._random = random.Random(seed)
        self._facts = folder / "facts"
        self._facts.touch()
        os.environ["LEADING_FACTS"] = str(self._facts)
        os.environ["LEADING_QUEUES"] = queues
        environment = {
            **os.environ,
            "LEADING_BROKER": broker,
            "LEADING_DATABASE": database,
            "LEADING_SCHEDULE": str(folder / "schedule"),
            "PYTHONWARNINGS": "ignore",
        }
        self._workers: dict[str, Program] = {}
        for number in range(NODES):
            node = f"node{number}@test"
            command = [sys.executable, "-m", "celery", "-A", "tests.leading.app", "worker", "--pgleader", "-n", node]
            command += ["-P", pool, "-c", "2", "-l", "INFO"]
            if pool in {"gevent", "eventlet"}:
                # Its heartbeat waits for confirmations, on a connection from which another green thread takes them.
                command.append("--without-heartbeat")
            self._workers[node] = Program(node, command, environment, folder)

    def __enter__(self) -> Driver:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind."""
        for worker in self._workers.values():
            worker.end()

    def run(self, tasks: int, kinds: Sequence[str], seconds: float, restart_broker: Callable[[], None]) -> Count:
        """Have so many tasks sent in so long, while the lead changes in these ways; wait for the end, and count."""
        eventually(
            lambda: all(worker.has_logged(f"{worker.name} ready.") for worker in self._workers.values()), PATIENCE
        )
        eventually(self._leader, PATIENCE)
        sender = Sender(self._broker, tasks, seconds, self._seed)
        began = time.monotonic()
        sender.start()
        for number, kind in enumerate(kinds):
            if number == len(kinds) // 2:
                self._wait_until(began + seconds * number / len(kinds))
                self._fault("broker", "", restart_broker)
            self._wait_until(began + seconds * (number + self._random.uniform(0.3, 0.8)) / len(kinds))
            self._harm_leader(kind)
        eventually(sender.is_done, seconds + PATIENCE)
        self._await_runs()
        within = ACKNOWLEDGED_WITHIN_SOLO if self._pool == "solo" else ACKNOWLEDGED_WITHIN
        return count_tasks(read_facts(self._facts), within)

    def mixed(self, changes: int) -> list[str]:
        """Return as many ways for the lead to change, all of them in turn, in no order."""
        kinds = [KINDS[number % len(KINDS)] for number in range(changes)]
        self._random.shuffle(kinds)
        return kinds

    def _leader(self) -> tuple[Program, int] | None:
        # A session that ends while it is looked at has no name any more.
        leaders = [seat for seat in observe(self._config) if seat.role == "leader" and seat.node in self._workers]
        return (self._workers[leaders[0].node], leaders[0].backend_pid) if leaders else None

    def _is_settled(self) -> bool:
        """Tell whether a worker leads, and another is there to follow it."""
        return bool(self._leader()) and any(seat.role == "successor" for seat in observe(self._config))

    def _wait_until(self, instant: float) -> None:
        threading.Event().wait(max(0.0, instant - time.monotonic()))

    def _fault(self, kind: str, node: str, make: Callable[[], None]) -> None:
        self.kinds[kind] += 1
        began = time.monotonic()
        make()
        common.tell("fault", kind=kind, node=node, began=began)

    def _harm_leader(self, kind: str) -> None:
        eventually(self._is_settled, PATIENCE)
        worker, pid = self._leader() or (None, 0)
        assert worker is not None, "nobody leads"
        self._fault(kind, worker.name, lambda: self._harm(worker, pid, kind))
        if kind in {"term", "kill", "kill main"}:
            worker.await_end()
            worker.restart()

    def _harm(self, worker: Program, pid: int, kind: str) -> None:
        if kind == "terminate":
            with psycopg.connect(self._database, autocommit=True) as connection:
                connection.execute("select pg_terminate_backend(%s)", [pid])
        elif kind == "resign":
            worker.send(common.RESIGN)
        elif kind == "term":
            worker.send(signal.SIGTERM)
        else:
            worker.send(signal.SIGSTOP if kind == "stop" else signal.SIGKILL, group=kind != "kill main")
        eventually(lambda: (self._leader() or (worker, pid))[1] != pid, PATIENCE)
        if kind == "stop":
            worker.send(signal.SIGCONT, group=True)

    def _await_runs(self) -> None:
        """Wait until all has run, or until there is no progress: what is missing is counted then."""
        seen, since = -1, time.monotonic()
        while time.monotonic() < since + STANDSTILL:
            facts = read_facts(self._facts)
            sent = {fact["key"] for fact in facts if fact["what"] == "sent"}
            ended = {fact["key"] for fact in facts if fact["what"] == "ended"}
            # What is delivered again comes a little later.
            if sent <= ended and time.monotonic() > since + 3:
                return
            if len(facts) != seen:
                seen, since = len(facts), time.monotonic()
            threading.Event().wait(PAUSE)
