"""How long a notification takes until its task runs, and how many are run or dispatched a second.

Sender and runner are processes of their own, in turns, on one Postgres that flushes to disk. What is dispatched is
counted where the broker has it, against a loop of `apply_async` in the same process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.bench import DURABLE, PAYLOAD, Bench, migrate
from benchmarks.ear import Ear
from benchmarks.figures import Figure, Results
from benchmarks.rivals import PGQUEUER, PROCRASTINATE, install
from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.support.programs import Program
from tests.support.rabbitmq import RabbitMQ, find_rabbitmq

PROGRAMS = Path(__file__).parent / "programs"
OURS = "celery-pgleader, durable"
LOOP = "a loop of apply_async"
PATIENCE = 60.0
PACE = 50

FIGURES = {
    "latency": Figure("latency", f"until the task runs, {PACE} a second", "ms"),
    "latency after commit": Figure("latency", "from the end of the commit", "ms"),
    "run per second": Figure("throughput", "tasks run, of a batch", "/s", lower_is_better=False),
    "dispatched per second, Valkey": Figure("throughput", "sent to Valkey", "/s", lower_is_better=False),
    "dispatched per second, RabbitMQ": Figure("throughput", "sent to RabbitMQ", "/s", lower_is_better=False),
}


@dataclass(frozen=True)
class Contender:
    """A way from a transaction to a task.

    Attributes:
        name: what the tables call it.
        about: what that is.
        python: of its environment.
        runners: programs that have to run for it, each with its arguments.
        sender: the program that sends; number and pace are added to its arguments.

    """

    name: str
    about: str
    python: str
    runners: tuple[tuple[str, ...], ...]
    sender: tuple[str, ...]


WORKER = ("-m", "celery", "-A", "notify_app", "worker", "-c", "1", "--without-mingle", "--without-gossip")
LEADER = (*WORKER, "--pgleader")
SEND, LISTENER = str(PROGRAMS / "send.py"), str(PROGRAMS / "listener.py")
JOBS, QUEUER = str(PROGRAMS / "with_procrastinate.py"), str(PROGRAMS / "with_pgqueuer.py")
CONTENDERS = (
    Contender(OURS, "relayed by the leader, one prefork child", sys.executable, (LEADER,), (SEND, "durable")),
    Contender("celery-pgleader, raw", "the leader listens", sys.executable, (LEADER,), (SEND, "raw")),
    Contender("a bare listener", "LISTEN, then apply_async", sys.executable, ((LISTENER,), WORKER), (SEND, "raw")),
    Contender(PROCRASTINATE.title, "concurrency 1", PROCRASTINATE.python, ((JOBS, "work", "1"),), (JOBS, "send")),
    Contender(
        PROCRASTINATE.title + " (tuned)",
        "concurrency 20",
        PROCRASTINATE.python,
        ((JOBS, "work", "20"),),
        (JOBS, "send"),
    ),
    Contender(PGQUEUER.title, "batches of 10", PGQUEUER.python, ((QUEUER, "work", "10"),), (QUEUER, "send")),
    Contender(
        PGQUEUER.title + " (tuned)", "batches of 100", PGQUEUER.python, ((QUEUER, "work", "100"),), (QUEUER, "send")
    ),
    Contender(LOOP, "no Postgres at all: what Celery takes", sys.executable, (WORKER,), (SEND, "loop")),
    Contender(
        "LISTEN and NOTIFY",
        "no task at all: what Postgres takes",
        sys.executable,
        ((LISTENER, "--only"),),
        (SEND, "raw"),
    ),
)


def run(*, quick: bool) -> Results:
    """Measure."""
    results = Results(OURS, FIGURES)
    missing = install((PROCRASTINATE, PGQUEUER))
    results.notes += [f"{rival.title} could not be installed" for rival in missing]
    absent = tuple(rival.title for rival in missing)
    contenders = [one for one in CONTENDERS if not absent or not one.name.startswith(absent)]
    results.about |= {contender.name: contender.about for contender in contenders}
    with EmbeddedPostgres(settings=DURABLE) as postgres, EmbeddedValkey() as valkey:
        end_to_end(results, contenders, postgres, rounds=3 if quick else 10, number=30 if quick else 500)
        dispatched(results, "Valkey", postgres, valkey.url, quick=quick)
        script = find_rabbitmq()
        if script is None:
            results.notes.append("RabbitMQ is not installed")
            return results
        with RabbitMQ(script) as node:
            dispatched(results, "RabbitMQ", postgres, node.url, quick=quick, confirm_publish=True)
    return results


def end_to_end(
    results: Results, contenders: Sequence[Contender], postgres: EmbeddedPostgres, rounds: int, number: int
) -> None:
    """Measure from the moment at which a notification is sent to that at which its task runs."""
    with ExitStack() as stack:
        lanes = [stack.enter_context(_running(contender, postgres)) for contender in contenders]
        for turn in range(rounds):
            # Who comes first or last has no advantage.
            for lane in lanes if turn % 2 else lanes[::-1]:
                lane.send(number if turn else number // 4, PACE)
                if turn:
                    results.add(lane.contender.name, "latency", *lane.latencies("sent"))
                    results.add(lane.contender.name, "latency after commit", *lane.latencies("committed"))
                lane.send(10 * number, 0)
                if turn:
                    results.add(lane.contender.name, "run per second", lane.rate())


class Lane:
    """A contender whose runners run."""

    def __init__(self, contender: Contender, environment: dict[str, str], ear: Ear) -> None:
        """Take over what was started."""
        self.contender = contender
        self._environment = environment
        self._ear = ear

    def send(self, number: int, pace: float) -> None:
        """Send so many, and wait until all have run."""
        self._ear.forget()
        command = [self.contender.python, *self.contender.sender, str(number), str(pace)]
        subprocess.run(command, env=self._environment, check=True, timeout=PATIENCE)
        if not self._ear.await_fact("ran", 0, PATIENCE, times=number):
            raise TimeoutError(f"{self.contender.name}: not all {number} notifications came to a task")

    def latencies(self, since: str) -> list[float]:
        """Return how many milliseconds after `since` each ran."""
        ran = {fact["number"]: fact["at"] for fact in self._ear.facts("ran")}
        return [1000 * (ran[fact["number"]] - fact["at"]) for fact in self._ear.facts(since)]

    def rate(self) -> float:
        """Return how many were run a second."""
        (sent,) = self._ear.facts("sent")
        ran = self._ear.facts("ran")
        return len(ran) / float(max(fact["at"] for fact in ran) - sent["at"])


@contextmanager
def _running(contender: Contender, postgres: EmbeddedPostgres) -> Iterator[Lane]:
    with (
        EmbeddedValkey() as valkey,
        Ear() as ear,
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        ExitStack() as ended,
    ):
        database = f"b{ear.port}"
        with psycopg.connect(postgres.url(), autocommit=True) as session:
            session.execute(f"create database {database}".encode())
        conf = {
            "pgleader_database_url": postgres.url(database),
            "pgleader_election": "bench",
            "pgleader_channels": {"orders": "bench.on_order"},
        }
        environment = {
            **os.environ,
            "PYTHONPATH": str(PROGRAMS),
            "BENCH_EAR": str(ear.port),
            "BENCH_NODE": contender.name,
            "BENCH_BROKER": valkey.url,
            "BENCH_DATABASE": postgres.url(database),
            "BENCH_CONF": json.dumps(conf),
        }
        for place, runner in enumerate(contender.runners):
            program = Program(f"runner-{place}", [contender.python, *runner], environment, Path(folder))
            ended.callback(program.end)
        if not ear.await_fact("ready", 0, PATIENCE, times=len(contender.runners)):
            raise TimeoutError(f"{contender.name} does not run: {program.logged()[-2000:]}")
        yield Lane(contender, environment, ear)


def dispatched(
    results: Results, broker: str, postgres: EmbeddedPostgres, url: str, *, quick: bool, **transport_options: bool
) -> None:
    """Measure a backlog's way to the broker against a loop, in turns."""
    migrate(postgres.url())
    bench = Bench(postgres.url(), url, transport_options=transport_options)
    number, figure = 1_000 if quick else 10_000, f"dispatched per second, {broker}"
    bench.task.apply_async((PAYLOAD,))
    for _ in range(3):
        bench.add_backlog(number)
        began = time.perf_counter()
        with bench.running(bench.relay()):
            bench.await_no_backlog()
            results.add(OURS, figure, number / (time.perf_counter() - began))
        began = time.perf_counter()
        for _ in range(number):
            bench.task.apply_async((PAYLOAD,))
        results.add(LOOP, figure, number / (time.perf_counter() - began))
