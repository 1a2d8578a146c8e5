"""How late ticks are: when the broker has taken the message, minus when it was due; and what a tick takes.

Each contender loads the same entries, which fall due evenly from then on. Two run at a time, each with and without
celery-pgleader; with ten entries, which is little to do, all of them. Servers are their own; Postgres flushes to disk.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg

from benchmarks.ear import Ear
from benchmarks.figures import Figure, Results
from benchmarks.rivals import DJANGO_CELERY_BEAT, REDBEAT, install
from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from example_app.waiting import wait_until
from tests.support.programs import Program

PROGRAMS = Path(__file__).parent / "programs"
OURS = "celery-pgleader"
STOCK = "celery beat"
GLANCE = 0.1
# So much longer it is waited for those that have not loaded their entries in time, and longer still.
PATIENCE = (1, 3, 8)


@dataclass(frozen=True)
class Size:
    """A schedule.

    Attributes:
        entries: how many.
        period: of each, in seconds; longer, if they take longer to load.
        step: seconds between one tick and the next.
        loading: seconds in which a contender has loaded them, on a machine that does nothing else.
        at_a_time: how many contenders run at the same time.
        window: seconds for which they are watched.

    """

    entries: int
    period: int
    step: float
    loading: float
    at_a_time: int
    window: float


SIZES = (Size(10, 9, 0.3, 6, 6, 18), Size(1_000, 10, 0.01, 5, 2, 4), Size(10_000, 100, 0.01, 12, 2, 4))

FIGURES = {
    f"{kind} with {size.entries:,} entries": Figure(kind, f"{size.entries:,} entries", unit)
    for kind, unit in {"lateness": "ms", "CPU for a tick": "ms", "ticks not sent": "%"}.items()
    for size in SIZES
}


@dataclass(frozen=True)
class Contender:
    """A scheduler.

    Attributes:
        name: what the tables call it.
        about: what that is.
        python: of its environment.
        options: for `celery beat`.
        conf: Celery's settings; {broker} and {database} are the servers' URLs.
        fill: what writes the entries into its own store; by default they are in Celery's settings.
        django: whether that is Django's database.
        registers: whether it has loaded its entries when all of them are in the ledger; otherwise, when it runs.

    """

    name: str
    about: str
    python: str
    options: tuple[str, ...] = ()
    conf: Mapping[str, str] = field(default_factory=dict)
    fill: str = ""
    django: bool = False
    registers: bool = False


WRAPPED = ("-S", "pgleader")
LEDGER = {"pgleader_database_url": "{database}", "pgleader_election": "bench"}
IN_REDIS = {"redbeat_redis_url": "{broker}"}
REDBEATS, DJANGOS = "redbeat.RedBeatScheduler", "django_celery_beat.schedulers:DatabaseScheduler"
CONTENDERS = (
    Contender(STOCK, "Celery's default scheduler", sys.executable),
    Contender(
        OURS, "celery beat -S pgleader, around the default scheduler", sys.executable, WRAPPED, LEDGER, registers=True
    ),
    Contender(REDBEAT.title, "alone", REDBEAT.python, ("-S", REDBEATS), IN_REDIS, "fill_redbeat.py"),
    Contender(
        "celery-pgleader around RedBeat",
        "celery beat -S pgleader, beat_scheduler RedBeat",
        sys.executable,
        WRAPPED,
        {**LEDGER, **IN_REDIS, "beat_scheduler": REDBEATS},
        "fill_redbeat.py",
    ),
    Contender(
        DJANGO_CELERY_BEAT.title, "alone", DJANGO_CELERY_BEAT.python, ("-S", DJANGOS), {}, "fill_django.py", django=True
    ),
    Contender(
        "celery-pgleader around django-celery-beat",
        "celery beat -S pgleader, beat_scheduler django",
        sys.executable,
        WRAPPED,
        {**LEDGER, "beat_scheduler": DJANGOS},
        "fill_django.py",
        django=True,
        registers=True,
    ),
)


def run(*, quick: bool) -> Results:
    """Measure."""
    results = Results(OURS, FIGURES)
    missing = install((REDBEAT, DJANGO_CELERY_BEAT))
    results.notes += [f"{rival.title} could not be installed" for rival in missing]
    contenders = [one for one in CONTENDERS if one.name not in {rival.title for rival in missing}]
    results.about |= {contender.name: contender.about for contender in contenders}
    for number in range(1 if quick else 5):
        for size in SIZES:
            groups = [contenders[at : at + size.at_a_time] for at in range(0, len(contenders), size.at_a_time)]
            for group in groups:
                # Who comes first or last has no advantage.
                measure(results, group if number % 2 else group[::-1], size, size.window * (1 if quick else 5))
    return results


def measure(results: Results, contenders: Sequence[Contender], size: Size, window: float) -> None:
    """Have contenders tick for a while, at the same time."""
    for loading in (size.loading * patience for patience in PATIENCE):
        # When they were last run, by what they are told, is in the past when they are loaded.
        period = max(size.period, math.ceil(loading + min(size.window, size.step * size.entries)))
        began = time.time() + loading
        schedule = {"entries": size.entries, "period": period, "step": size.step, "began": began}
        with ExitStack() as stack:
            lanes = [stack.enter_context(_loaded(contender, schedule)) for contender in contenders]
            late = [lane.contender.name for lane in lanes if not _has_loaded(lane, size.entries, began)]
            if not late:
                _watch(results, lanes, schedule, window)
                return
    results.notes.append(f"{', '.join(late)} did not load {size.entries:,} entries within {loading:g} s")


@dataclass(frozen=True)
class Lane:
    """A contender that loads its entries.

    Attributes:
        contender: which.
        database: its Postgres.
        beat: its process.
        ear: hears its ticks.

    """

    contender: Contender
    database: str
    beat: Program
    ear: Ear


def _has_loaded(lane: Lane, entries: int, by: float) -> bool:
    """Tell whether a contender has loaded its entries in time."""
    if not lane.ear.await_fact("ready", 0, by - time.time()):
        return False
    if not lane.contender.registers:
        return True
    query = "select count(*) >= %s from pgleader.entries"
    with psycopg.connect(lane.database, autocommit=True) as session:

        def has_registered() -> bool:
            try:
                return session.execute(query, [entries]).fetchone() == (True,)
            except psycopg.errors.UndefinedTable:
                return False

        return wait_until(has_registered, by - time.time(), GLANCE) is not None


def _watch(results: Results, lanes: Sequence[Lane], schedule: Mapping[str, float], window: float) -> None:
    entries, period, step = int(schedule["entries"]), schedule["period"], schedule["step"]
    due = sum(math.ceil((window - step * number) / period) for number in range(entries) if step * number < window)
    # By the clock of the facts.
    began = schedule["began"] - (time.time() - time.monotonic())

    def lateness(fact: Mapping[str, Any]) -> float:
        after_first: float = fact["at"] - began - step * fact["entry"]
        return 1000 * (after_first - round(after_first / period) * period)

    spent = []
    for at in (began, began + window):
        threading.Event().wait(max(0.0, at - time.monotonic()))
        spent.append([_cpu_seconds(lane) for lane in lanes])
    for lane, before, after in zip(lanes, *spent, strict=True):
        facts = [fact for fact in lane.ear.facts("tick", began) if fact["at"] < began + window]
        name, suffix = lane.contender.name, f"with {entries:,} entries"
        results.add(name, f"ticks not sent {suffix}", max(0.0, 100 * (1 - len(facts) / due)))
        if facts:
            results.add(name, f"CPU for a tick {suffix}", 1000 * (after - before) / len(facts))
            results.add(name, f"lateness {suffix}", *map(lateness, facts))


def _cpu_seconds(lane: Lane) -> float:
    times = psutil.Process(lane.beat.process.pid).cpu_times()
    return float(times.user + times.system)


@contextmanager
def _loaded(contender: Contender, schedule: Mapping[str, float]) -> Iterator[Lane]:
    durable = {"fsync": "on", "full_page_writes": "on"}
    with (
        EmbeddedPostgres(settings=durable) as postgres,
        EmbeddedValkey() as valkey,
        Ear() as ear,
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
    ):
        conf = json.dumps(dict(contender.conf))
        for place, url in {"{database}": postgres.url(), "{broker}": valkey.url}.items():
            conf = conf.replace(place, url)
        environment = {
            **os.environ,
            "PYTHONPATH": str(PROGRAMS),
            "BENCH_EAR": str(ear.port),
            "BENCH_NODE": contender.name,
            "BENCH_BROKER": valkey.url,
            "BENCH_CONF": conf,
            "BENCH_SCHEDULE": json.dumps(schedule),
        }
        if contender.django:
            environment |= {"BENCH_DATABASE": postgres.url(), "DJANGO_SETTINGS_MODULE": "django_settings"}
        if contender.fill:
            subprocess.run([contender.python, str(PROGRAMS / contender.fill)], env=environment, check=True)
            del environment["BENCH_SCHEDULE"]
        command = [contender.python, "-m", "celery", "-A", "beat_app", "beat", "--pidfile", "", "-l", "WARNING"]
        command += ["-s", str(Path(folder, "schedule")), *contender.options]
        beat = Program("beat", command, environment, Path(folder))
        try:
            yield Lane(contender, postgres.url(), beat, ear)
        finally:
            beat.end()
