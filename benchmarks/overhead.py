"""What taking part costs a worker: its ordinary tasks, memory, connections, its start; and what a fleet costs Postgres.

Three workers live side by side: one without, the leader, and a follower, each with a queue of its own. They get the
same batch one after the other, the one without before and after each, so that the noise of the machine, which is slower
than a turn, falls on both sides of each comparison. Then they are replaced by another three.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import redis
from celery import Celery

from benchmarks.ear import Ear
from benchmarks.figures import Figure, Results
from celery_pgleader.config import Config
from celery_pgleader.election.observer import observe
from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.support.programs import Program

PROGRAMS = Path(__file__).parent / "programs"
PLAIN, LEADER, FOLLOWER = "without", "celery-pgleader", "celery-pgleader, follower"
OPTIONS: dict[str, list[str]] = {PLAIN: [], LEADER: ["--pgleader"], FOLLOWER: ["--pgleader"]}
ABOUT = {
    PLAIN: "a worker without --pgleader",
    LEADER: "a worker that leads: it ticks once a second and consumes the leader queue",
    FOLLOWER: "a worker that is a successor",
}
ELECTION = "bench"
TASKS = 250
PATIENCE = 60.0
GLANCE = 0.001
STAGE = "bench.stage"
NODES = (3, 30, 300)

FIGURES = {
    "tasks per second": Figure("tasks", "tasks", "/s", lower_is_better=False),
    "slower than without": Figure("tasks", "slower than without", "%"),
    "CPU for a task": Figure("tasks", "processor time for a task", "ms"),
    "memory": Figure("worker", "memory", "MB"),
    "connections": Figure("worker", "connections with Postgres"),
    "start": Figure("worker", "from start to ready", "ms"),
    "later than without": Figure("worker", "ready later than without", "ms"),
    "CPU of a start": Figure("worker", "processor time until ready", "ms"),
    **{f"statements of {n} nodes": Figure("statements", f"an idle fleet of {n}", "/s") for n in NODES},
}


class Fleet:
    """The three workers, and the broker that they get their batches from."""

    def __init__(self, database: str, broker: str, folder: Path, ear: Ear) -> None:
        """Start the workers, the leader before the follower; return when all consume."""
        self._ear = ear
        self._database = database
        self._client = redis.Redis.from_url(broker)
        self._template = _message(broker, self._client)
        self._folder = folder
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(PROGRAMS),
            "BENCH_EAR": str(ear.port),
            "BENCH_BROKER": broker,
            "BENCH_DATABASE": database,
            "BENCH_SCHEDULE": str(folder / "schedule"),
        }
        self._workers: dict[str, Program] = {}
        election = Config(database_url=database, election=ELECTION)
        for name, options in OPTIONS.items():
            self._workers[name] = self._start(name, ELECTION, options)
            self.run_batch(name, 1)
            if name == LEADER:
                _await(lambda: any(seat.role == "leader" for seat in observe(election)))

    def run_batch(self, name: str, tasks: int) -> tuple[float, float]:
        """Have a worker run so many tasks; return how many a second, and milliseconds of processor time for each."""
        self._client.lpush(STAGE, *(self._copy(name) for _ in range(tasks)))
        before = _cpu_seconds(self._workers[name])
        began = time.monotonic()
        self._client.rename(STAGE, _queue(name))
        _await(lambda: not (self._client.llen(_queue(name)) or self._client.hlen("unacked")))
        seconds = time.monotonic() - began
        return tasks / seconds, 1000 * (_cpu_seconds(self._workers[name]) - before) / tasks

    def start_up(self, options: Sequence[str]) -> tuple[float, float]:
        """Start one more worker; return how many milliseconds it took to consume, and how many of processor time."""
        name = f"w{uuid.uuid4().hex[:8]}"
        began = time.monotonic()
        worker = self._start(name, name, options)
        ready = self._ear.await_fact("ready", began, PATIENCE, lambda fact: fact["node"] == name)
        spent = _cpu_seconds(worker)
        assert ready, worker.logged()
        worker.end()
        return 1000 * (ready["at"] - began), 1000 * spent

    def memory(self, name: str) -> float:
        """Return how much memory a worker and its children have for themselves, in megabytes."""
        process = psutil.Process(self._workers[name].process.pid)
        family = [process, *process.children(recursive=True)]
        return sum(each.memory_full_info().pss for each in family) / 1e6

    def connections(self, name: str) -> int:
        """Return how many connections with Postgres a worker and its children have."""
        process = psutil.Process(self._workers[name].process.pid)
        port = urlsplit(self._database).port
        return sum(
            connection.raddr.port == port
            for each in (process, *process.children(recursive=True))
            for connection in each.net_connections("tcp")
            if connection.raddr
        )

    def end(self) -> None:
        """Leave no process behind."""
        for worker in self._workers.values():
            worker.end()
        self._client.close()

    def _start(self, name: str, election: str, options: Sequence[str]) -> Program:
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "overhead_app",
            "worker",
            "-c",
            "2",
            "-n",
            f"{_queue(name)}@bench",
        ]
        command += ["-Q", _queue(name), "-l", "WARNING", *options]
        environment = {**self._environment, "BENCH_NODE": name, "BENCH_ELECTION": election}
        return Program(name, command, environment, self._folder)

    def _copy(self, name: str) -> bytes:
        identity, tag = str(uuid.uuid4()), str(uuid.uuid4())
        text = self._template.replace("NAME", _queue(name)).replace("IDENTITY", identity).replace("TAG", tag)
        return text.encode()


@contextmanager
def fleet() -> Iterator[Fleet]:
    """Give the workers, on servers of their own."""
    with (
        EmbeddedPostgres() as postgres,
        EmbeddedValkey() as valkey,
        Ear() as ear,
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
    ):
        workers = Fleet(postgres.url(), valkey.url, Path(folder), ear)
        try:
            yield workers
        finally:
            workers.end()


def run(*, quick: bool) -> Results:
    """Measure."""
    results = Results(LEADER, FIGURES)
    results.about |= ABOUT
    # One worker may be quicker than the next for as long as it lives, whatever it is.
    for _ in range(3 if quick else 20):
        with fleet() as workers:
            tasks(results, workers, rounds=9 if quick else 20)
    with fleet() as workers:
        starts(results, workers, rounds=3 if quick else 30)
        for name in OPTIONS:
            results.add(name, "memory", workers.memory(name))
            results.add(name, "connections", workers.connections(name))
    statements(results, 10.0 if quick else 60.0)
    return results


def tasks(results: Results, workers: Fleet, rounds: int) -> None:
    """Have them run batches, in turns."""
    # Not counted: what is cold is slow.
    for name in OPTIONS:
        workers.run_batch(name, TASKS)
    before = workers.run_batch(PLAIN, TASKS)
    for number in range(rounds):
        for name in (LEADER, FOLLOWER) if number % 2 else (FOLLOWER, LEADER):
            rate, cpu = workers.run_batch(name, TASKS)
            after = workers.run_batch(PLAIN, TASKS)
            results.add(name, "tasks per second", rate)
            results.add(name, "slower than without", 100 * (1 - 2 * rate / (before[0] + after[0])))
            results.add(name, "CPU for a task", cpu)
            results.add(PLAIN, "tasks per second", after[0])
            results.add(PLAIN, "CPU for a task", after[1])
            before = after


def starts(results: Results, workers: Fleet, rounds: int) -> None:
    """Start workers, in turns: without, and with an election of its own, which it wins."""
    for _ in range(rounds):
        plain, plain_cpu = workers.start_up(OPTIONS[PLAIN])
        ours, cpu = workers.start_up(OPTIONS[LEADER])
        results.add(PLAIN, "start", plain)
        results.add(PLAIN, "CPU of a start", plain_cpu)
        results.add(LEADER, "start", ours)
        results.add(LEADER, "CPU of a start", cpu)
        results.add(LEADER, "later than without", ours - plain)


@dataclass(frozen=True)
class Idle:
    """An idle fleet.

    Attributes:
        name: what the tables call it.
        about: what that is.
        kind: as fleet.py calls it.
        poll: seconds between two tries, of pollers.

    """

    name: str
    about: str
    kind: str
    poll: float = 0.0


IDLE = (
    Idle(LEADER, ABOUT[LEADER], "candidates"),
    Idle("try-lock polling, 10 s", "the seed's algorithm on psycopg, at its default", "pollers", 10.0),
    Idle("try-lock polling, 0.1 s", "the seed's algorithm on psycopg", "pollers", 0.1),
)


def statements(results: Results, seconds: float) -> None:
    """Count the statements that idle fleets send, all at the same time, as Postgres logs them."""
    with ExitStack() as stack:
        counted = [(idle, nodes, stack.enter_context(_idle_fleet(idle, nodes))) for idle in IDLE for nodes in NODES]
        before = [_logged_statements(postgres) for *_, postgres in counted]
        threading.Event().wait(seconds)
        for (idle, nodes, postgres), earlier in zip(counted, before, strict=True):
            count = _logged_statements(postgres) - earlier
            results.about.setdefault(idle.name, idle.about)
            results.add(idle.name, f"statements of {nodes} nodes", count / seconds)


@contextmanager
def _idle_fleet(idle: Idle, nodes: int) -> Iterator[EmbeddedPostgres]:
    settings = {"log_statement": "all", "max_connections": str(2 * max(NODES))}
    with EmbeddedPostgres(settings=settings) as postgres, Ear() as ear, tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": str(PROGRAMS),
            "BENCH_EAR": str(ear.port),
            "BENCH_NODE": idle.name,
            "BENCH_DATABASE": postgres.url(),
            "BENCH_POLL": str(idle.poll),
            "BENCH_FOLDER": folder,
        }
        command = [sys.executable, str(PROGRAMS / "fleet.py"), idle.kind, str(nodes)]
        program = Program("fleet", command, environment, Path(folder))
        try:
            assert ear.await_fact("ready", 0, PATIENCE), program.logged()
            _await_sessions(postgres, nodes)
            yield postgres
        finally:
            program.end()


def _await_sessions(postgres: EmbeddedPostgres, nodes: int) -> None:
    query = "select count(*) >= %s from pg_stat_activity where backend_type = 'client backend'"
    with psycopg.connect(postgres.url(), autocommit=True) as session:
        # This session is one more.
        _await(lambda: session.execute(query, [nodes + 1]).fetchone() == (True,), glance=0.5)


def _logged_statements(postgres: EmbeddedPostgres) -> int:
    return len(re.findall(r"LOG:  (?:statement|execute)", postgres.log.read_text(errors="replace")))


def _queue(name: str) -> str:
    """Return what a worker and its queue are called: a comma would make two queues of it."""
    return name.replace(", ", "-")


def _cpu_seconds(worker: Program) -> float:
    process = psutil.Process(worker.process.pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _message(broker: str, client: redis.Redis) -> str:
    """Return a message as Celery sends it, with what differs from one to the next in capitals."""
    app = Celery("overhead_app", broker=broker, set_as_current=False)
    app.send_task("nothing", task_id="IDENTITY", queue=STAGE)
    packed = client.rpop(STAGE)
    app.close()
    assert isinstance(packed, bytes)
    message = json.loads(packed)
    message["properties"]["delivery_tag"] = "TAG"
    message["properties"]["delivery_info"]["routing_key"] = "NAME"
    return json.dumps(message)


def _await(is_true: Callable[[], bool], glance: float = GLANCE) -> None:
    until = time.monotonic() + PATIENCE
    never = threading.Event()
    while not is_true():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {PATIENCE:g} s")
        never.wait(glance)
