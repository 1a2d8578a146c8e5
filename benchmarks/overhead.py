"""What taking part costs a worker's ordinary tasks: throughput with `--pgleader` beside without, in turns.

Three workers live through the whole run: one without, the leader, and a follower, each with a queue of its own. They
get the same batch one after the other, the one without before and after each, so that the noise of the machine, which
is slower than a turn, falls on both sides of each comparison.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
from celery import Celery

from celery_pgleader.config import Config
from celery_pgleader.election.observer import observe
from example_app.servers import EmbeddedPostgres, EmbeddedValkey

PLAIN, LEADER, FOLLOWER = "without", "leader", "follower"
OPTIONS = {PLAIN: [], LEADER: ["--pgleader"], FOLLOWER: ["--pgleader"]}
TASKS = 250
PATIENCE = 60.0
GLANCE = 0.001
STAGE = "bench.stage"


@dataclass(frozen=True)
class Turn:
    """One batch on one worker, and the batches right before and after it on the worker that takes no part.

    `rate` and `plain_rate` are tasks a second, `cpu` and `plain_cpu` milliseconds of processor time for each task.
    """

    contender: str
    rate: float
    plain_rate: float
    cpu: float
    plain_cpu: float


class Fleet:
    """The three workers, and the broker that they get their batches from."""

    def __init__(self, database: str, broker: str, folder: Path, pool: str) -> None:
        """Start the workers, the leader before the follower; return when all consume."""
        self._client = redis.Redis.from_url(broker)
        self._template = _message(broker, self._client)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        environment = {
            **os.environ,
            "BENCH_BROKER": broker,
            "BENCH_DATABASE": database,
            "BENCH_SCHEDULE": str(folder / "schedule"),
        }
        election = Config(database_url=database, election="bench")
        for name, options in OPTIONS.items():
            command = [sys.executable, "-m", "celery", "-A", "benchmarks.overhead_app", "worker", "-P", pool, "-c", "2"]
            command += ["-n", f"{name}@bench", "-Q", name, "-l", "WARNING", *options]
            with (folder / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            self.run_batch(name, 1)
            if name == LEADER:
                _await(lambda: any(seat.role == "leader" for seat in observe(election)))

    def run_batch(self, name: str, tasks: int) -> tuple[float, float]:
        """Have a worker run so many tasks; return how many a second, and milliseconds of processor time for each."""
        self._client.lpush(STAGE, *(self._copy(name) for _ in range(tasks)))
        before = self._cpu_seconds(name)
        began = time.monotonic()
        self._client.rename(STAGE, name)
        _await(lambda: not (self._client.llen(name) or self._client.hlen("unacked")))
        seconds = time.monotonic() - began
        return tasks / seconds, 1000 * (self._cpu_seconds(name) - before) / tasks

    def end(self) -> None:
        """Leave no process behind."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        self._client.close()

    def _copy(self, name: str) -> bytes:
        identity, tag = str(uuid.uuid4()), str(uuid.uuid4())
        text = self._template.replace("NAME", name).replace("IDENTITY", identity).replace("TAG", tag)
        return text.encode()

    def _cpu_seconds(self, name: str) -> float:
        process = psutil.Process(self._processes[name].pid)
        times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        return sum(each.user + each.system for each in times)


@contextmanager
def fleet(pool: str) -> Iterator[Fleet]:
    """Give the workers, on servers of their own."""
    with (
        EmbeddedPostgres() as postgres,
        EmbeddedValkey() as valkey,
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
    ):
        workers = Fleet(postgres.url(), valkey.url, Path(folder), pool)
        try:
            yield workers
        finally:
            workers.end()


def run(*, quick: bool) -> tuple[list[Turn], str]:
    """Measure, and return the results with a table of them."""
    turns: list[Turn] = []
    with fleet("prefork") as workers:
        # Not counted: what is cold is slow.
        for name in OPTIONS:
            workers.run_batch(name, TASKS)
        plain = workers.run_batch(PLAIN, TASKS)
        for number in range(20 if quick else 200):
            contenders = [LEADER, FOLLOWER] if number % 2 else [FOLLOWER, LEADER]
            for contender in contenders:
                rate, cpu = workers.run_batch(contender, TASKS)
                after = workers.run_batch(PLAIN, TASKS)
                turns.append(Turn(contender, rate, (plain[0] + after[0]) / 2, cpu, (plain[1] + after[1]) / 2))
                plain = after
    return turns, table(turns)


def table(turns: Sequence[Turn]) -> str:
    """Return the medians over the turns, and how far the middle half of the ratios reaches, as Markdown."""
    lines = ["| worker | turns | tasks/s | without | ratio | middle half | CPU ms/task | without | ratio |"]
    lines.append("|---" * 9 + "|")
    for contender in (LEADER, FOLLOWER):
        some = [turn for turn in turns if turn.contender == contender]
        ratios = [turn.rate / turn.plain_rate for turn in some]
        low, _, high = statistics.quantiles(ratios, n=4)
        figures = [
            f"{len(some)}",
            f"{statistics.median(turn.rate for turn in some):.0f}",
            f"{statistics.median(turn.plain_rate for turn in some):.0f}",
            f"{statistics.median(ratios):.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{statistics.median(turn.cpu for turn in some):.3f}",
            f"{statistics.median(turn.plain_cpu for turn in some):.3f}",
            f"{statistics.median(turn.cpu / turn.plain_cpu for turn in some):.3f}",
        ]
        lines.append("| " + " | ".join([contender, *figures]) + " |")
    return "\n".join(lines)


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


def _await(is_true: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    never = threading.Event()
    while not is_true():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {PATIENCE:g} s")
        never.wait(GLANCE)
