"""How late ticks are: publication minus due instant, beside stock `celery beat`, in turns.

Both run as a process of their own with the same app, broker and schedule: `celery beat`, and `celery beat -S pgleader`
with its ledger in a Postgres that does flush to disk. The stamp is set when a message is sent.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import redis

from example_app.servers import EmbeddedPostgres, EmbeddedValkey

PERIOD = 10.0
CONTENDERS = {"celery beat": [], "pgleader": ["-S", "pgleader"]}
START = 8.0


@dataclass(frozen=True)
class Result:
    """What one contender did in one round.

    Times are in milliseconds. `drift` is by how much the last ticks are later than the first, in the median.
    """

    contender: str
    kind: str
    entries: int
    ticks: int
    expected: int
    early: int
    p50: float
    p99: float
    max: float
    drift: float
    cpu_seconds: float


def measure(kind: str, entries: int, seconds: float, rounds: int) -> list[Result]:
    """Let the contenders run in turns."""
    results = []
    for _ in range(rounds):
        for contender, options in CONTENDERS.items():
            with (
                EmbeddedPostgres(settings={"fsync": "on", "full_page_writes": "on"}) as postgres,
                EmbeddedValkey() as valkey,
                tempfile.TemporaryDirectory(prefix="bench-") as folder,
            ):
                results.append(
                    _run(contender, options, kind, entries, seconds, postgres.url(), valkey.url, Path(folder))
                )
                print(json.dumps(asdict(results[-1])), flush=True)
    return results


def run(*, quick: bool) -> tuple[list[Result], str]:
    """Measure, and return the results with a table of them."""
    rounds = 1 if quick else 3
    results = [
        *measure("spread", 1_000, 60, rounds),
        *measure("burst", 1_000, 30, rounds),
        *([] if quick else measure("burst", 10_000, 75, 1)),
    ]
    return results, table(results)


def table(results: Sequence[Result]) -> str:
    """Return the medians over the rounds, and the ratio of each to stock's, as Markdown."""
    lines = ["| schedule | entries | contender | ticks | early | p50 ms | p99 ms | max ms | p99 to stock's | CPU s |"]
    lines.append("|---" * 10 + "|")
    for kind, entries in dict.fromkeys((result.kind, result.entries) for result in results):
        stock = 0.0
        for contender in CONTENDERS:
            some = [r for r in results if (r.kind, r.entries, r.contender) == (kind, entries, contender)]
            p99 = statistics.median(r.p99 for r in some)
            stock = stock or p99
            ticks = f"{sum(r.ticks for r in some)} of {sum(r.expected for r in some)}"
            figures = [
                str(sum(r.early for r in some)),
                _middle(r.p50 for r in some),
                f"{p99:.1f}",
                f"{max(r.max for r in some):.1f}",
                f"{p99 / stock:.2f}",
                _middle(r.cpu_seconds for r in some),
            ]
            lines.append("| " + " | ".join([kind, f"{entries:,}", contender, ticks, *figures]) + " |")
    return "\n".join(lines)


def _middle(values: Iterable[float]) -> str:
    return f"{statistics.median(values):.1f}"


def _run(
    contender: str,
    options: list[str],
    kind: str,
    entries: int,
    seconds: float,
    database: str,
    broker: str,
    folder: Path,
) -> Result:
    # The first slot comes when everything has started.
    began = time.time() + START
    if kind == "burst":
        began = (began // 60 + 1) * 60 - 1
    environment = {
        **os.environ,
        "BENCH_BROKER": broker,
        "BENCH_DATABASE": database,
        "BENCH_SCHEDULE": json.dumps({"kind": kind, "entries": entries, "period": PERIOD, "began": began}),
    }
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.beat_app", "beat", "--pidfile", ""]
    command += ["-s", str(folder / "schedule"), "-l", "WARNING", *options]
    with (folder / "log").open("ab") as log:
        beat = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        threading.Event().wait(max(0.0, began + seconds - time.time()))
        times = psutil.Process(beat.pid).cpu_times()
    finally:
        beat.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            beat.wait(10)
        beat.kill()
    with redis.Redis.from_url(broker) as client:
        messages: list[Any] = client.lrange("celery", 0, -1)
    headers = [json.loads(message)["headers"] for message in messages]
    sent = sorted((h["bench_sent_at"], h["bench_entry"]) for h in headers if h["bench_sent_at"] >= began)
    return _sum_up(contender, kind, entries, seconds, began, sent, times.user + times.system)


def _sum_up(
    contender: str,
    kind: str,
    entries: int,
    seconds: float,
    began: float,
    sent: list[tuple[float, int]],
    cpu_seconds: float,
) -> Result:
    if kind == "burst":
        late = [at - (at + 1) // 60 * 60 for at, _ in sent]
        expected = entries * int((seconds - 1) // 60 + 1)
    else:
        step = PERIOD / entries
        phases = ((at, began + number * step) for at, number in sent)
        late = [at - phase - round((at - phase) / PERIOD) * PERIOD for at, phase in phases]
        expected = int(seconds / step)
    values = sorted(1000 * lateness for lateness in late) or [float("nan")]
    quarter = max(1, len(late) // 4)
    drift = statistics.median(late[-quarter:]) - statistics.median(late[:quarter]) if late else float("nan")
    return Result(
        contender=contender,
        kind=kind,
        entries=entries,
        ticks=len(sent),
        expected=expected,
        early=sum(value < 0 for value in values),
        p50=round(values[len(values) // 2], 2),
        p99=round(values[int(len(values) * 0.99)], 2),
        max=round(values[-1], 2),
        drift=round(1000 * drift, 2),
        cpu_seconds=round(cpu_seconds, 2),
    )
