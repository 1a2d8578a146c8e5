"""`celery -A proj pgleader doctor`: what would go wrong, and what to do about it, before it does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import click
from kombu.exceptions import OperationalError
from psycopg.errors import InsufficientPrivilege

from celery_pgleader.beat.leader_beat import TOLERATED_SKEW, scheduler_class
from celery_pgleader.cli.database import asking, config_of
from celery_pgleader.cli.output import show_json, show_text, wrapped
from celery_pgleader.config import Config
from celery_pgleader.election.lock_key import leader_key
from celery_pgleader.election.lock_session import MAX_SLICE, OLDEST_VERSION
from celery_pgleader.notifications.registry import routes
from celery_pgleader.operators import sql as statements
from celery_pgleader.operators.overview import Overview, look
from celery_pgleader.operators.words import first_line
from celery_pgleader.postgres import Session, SessionShared, open_session
from celery_pgleader.store import Schema
from celery_pgleader.store import sql as store_statements
from celery_pgleader.tasks import queue_name

EX_FINDINGS = 1
DEFAULT_VISIBILITY = 3600.0
# Seconds; below, slices are so short that waiting costs many statements.
SHORT_DEADLOCK_TIMEOUT = 0.2
LEADERS_SESSIONS = 5
# Seconds for which workers may answer, for each of two questions.
ANSWER_TIME = 1.0
# What the name begins with that a beat of Celery's answers by.
BEAT = "celerybeat@"
LEADING = ("leader", "renewing")


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        subject: what it is about.
        what: what is found.
        do: what to do about it.

    """

    subject: str
    what: str
    do: str


@dataclass(frozen=True)
class Patient:
    """What is examined.

    Attributes:
        app: the Celery app.
        config: its configuration.
        session: with its database.
        overview: of its election.

    """

    app: Any
    config: Config
    session: Session
    overview: Overview


def run_doctor(app: Any, *, as_json: bool) -> int:
    """Print what is not as it should be; return the exit code."""
    findings = examine(app)
    if as_json:
        show_json([asdict(finding) for finding in findings])
    for finding in [] if as_json else findings:
        show_text(f"{finding.subject}: {finding.what}")
        click.echo(wrapped(finding.do, "    ", "    "))
    if not as_json and not findings:
        show_text(f"all is well: {', '.join(EXAMINATIONS)}")
    return EX_FINDINGS if findings else 0


def examine(app: Any) -> list[Finding]:
    """Return what is not as it should be.

    Raises:
        click.ClickException: the database cannot be asked, or a setting cannot work.

    """
    app.loader.import_default_modules()
    app.finalize()
    config = config_of(app)
    with asking(app, pooled=True) as session:
        patient = Patient(app, config, session, look(config, session))
        return [
            Finding(subject, what, do)
            for subject, examination in EXAMINATIONS.items()
            for what, do in examination(patient)
        ]


def _server(patient: Patient) -> Iterator[tuple[str, str]]:
    row = patient.session.execute(statements.SERVER).fetchall()[0]
    version, is_standby = row[:2]
    if version < OLDEST_VERSION:
        yield f"this is PostgreSQL {version // 10_000}", "use PostgreSQL 14 or later"
    if is_standby:
        yield (
            "this server is a standby, and no election is held there",
            "let pgleader_database_url lead to the primary; with several hosts, add target_session_attrs=read-write",
        )


def _pooler(patient: Patient) -> Iterator[tuple[str, str]]:
    try:
        open_session(patient.config.database_url, "pgleader doctor", unresponsive_after=patient.config.ttl).close()
    except SessionShared as shared:
        yield (
            first_line(shared),
            "the workers refuse such a connection; the commands do with it",
        )


def _settings(patient: Patient) -> Iterator[tuple[str, str]]:
    row = patient.session.execute(statements.SERVER).fetchall()[0]
    read_only, lock_timeout, transaction_timeout, deadlock_timeout = row[2:6]
    change = "change it for the role or the database: alter role ... set {} = {}"
    if read_only:
        yield (
            "default_transaction_read_only is on: the leader could write nothing down",
            change.format("default_transaction_read_only", "off"),
        )
    if 0 < lock_timeout < 1:
        yield (
            f"lock_timeout is {lock_timeout:g} s: a term that is being minted may have to wait for a claim under way",
            change.format("lock_timeout", "0"),
        )
    if 0 < transaction_timeout < MAX_SLICE + 1:
        yield (
            f"transaction_timeout is {transaction_timeout:g} s: it ends sessions that wait for the lock",
            change.format("transaction_timeout", "0"),
        )
    if deadlock_timeout < SHORT_DEADLOCK_TIMEOUT:
        yield (
            f"deadlock_timeout is {deadlock_timeout:g} s: successors ask for the lock that often",
            "leave it at its default, a second, or above",
        )


def _connections(patient: Patient) -> Iterator[tuple[str, str]]:
    limit, free = patient.session.execute(statements.CONNECTIONS).fetchall()[0]
    needed = len(patient.overview.nodes) + LEADERS_SESSIONS
    if 0 <= limit < needed:
        yield (
            f"the role may have {limit} connections, and {len(patient.overview.nodes)} nodes need {needed}",
            "raise the role's CONNECTION LIMIT; count guarded runs besides, see Operations, Database",
        )
    if free < LEADERS_SESSIONS:
        yield (
            (
                f"the server has room for {max(0, free)} more connections, and a new leader needs up to"
                f" {LEADERS_SESSIONS - 1}"
            ),
            "raise max_connections, or close what is not needed",
        )


def _schema(patient: Patient) -> Iterator[tuple[str, str]]:
    role = patient.session.execute(store_statements.SCHEMA_STATE).fetchall()[0][2]
    migrate = f"as a role that may, run `celery -A <app> pgleader migrate --role {role}`"
    try:
        pending = Schema(patient.session).pending()
    except InsufficientPrivilege:
        yield f"role {role} may not use the schema pgleader", migrate
        return
    may_create = patient.session.execute(statements.MAY_CREATE).fetchall()[0][0]
    if pending and not may_create:
        steps = ", ".join(step.name for step in pending)
        yield f"the schema pgleader lacks {steps}, and role {role} may not change it", migrate
    elif not pending:
        try:
            allowed = patient.session.execute(store_statements.RIGHTS).fetchall()[0][0]
        except InsufficientPrivilege:
            allowed = False
        if not allowed:
            yield f"role {role} may not read and write all tables of the schema pgleader", migrate


def _clocks(patient: Patient) -> Iterator[tuple[str, str]]:
    asked_at = time.time()
    now = patient.session.execute(statements.CLOCK).fetchall()[0][0]
    skews = {"this host": (asked_at + time.time()) / 2 - now}
    skews |= {node.node: node.clock_skew for node in patient.overview.nodes}
    for name, skew in skews.items():
        if abs(skew) > TOLERATED_SKEW:
            yield (
                f"the clock of {name} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the database's",
                "slots are due by the leader's clock: see to the clock of that host, or the database's",
            )


def _nodes(patient: Patient) -> Iterator[tuple[str, str]]:
    nodes = patient.overview.nodes
    for name, number in Counter(node.node for node in nodes).items():
        if number > 1:
            yield f"{number} workers are called {name}", "give each a name of its own, with -n"
    for what, values, do in (
        (
            "schedules",
            {node.node: node.schedule for node in nodes if node.schedule},
            "bring all to one version of the app",
        ),
        ("versions of the app", {node.node: node.app_version for node in nodes}, "bring all to one version of the app"),
        (
            "versions of celery-pgleader",
            {node.node: node.package_version for node in nodes},
            "bring all to one version",
        ),
    ):
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{name} {value or 'none'}" for name, value in sorted(values.items()))
            yield f"nodes have different {what}: {shown}", f"{do}; in the middle of a deploy it is to be expected"
    for node in nodes:
        if node.stands_back is not None and node.priority > 0:
            yield f"{node.node} does not lead: {node.stands_back}", "see to it, or leave it with a priority of 0"
    if nodes and patient.overview.leader is None:
        yield "nobody leads, though nodes are there", "see `pgleader status`, and what their logs say"
    if patient.overview.held_at is not None:
        yield "the election is held: nobody is elected if the leader goes", "`pgleader resume --election`"
    if patient.overview.paused_at is not None:
        yield "the schedule is paused", "`pgleader resume --schedule`"


def _lock_key(patient: Patient) -> Iterator[tuple[str, str]]:
    config, leader = patient.config, patient.overview.leader
    key = leader_key(config)
    if leader is not None and config.lock is None and not leader.is_ours:
        yield (
            (
                f"the election's lock, classid {key.classid} and objid {key.objid}, is held by another program:"
                f" backend {leader.backend_pid}, {leader.node}"
            ),
            "find out who takes this lock; another name of the election, or pgleader_lock, gives another key",
        )
    if patient.overview.schema is None or config.lock is not None:
        return
    others = (name for (name,) in patient.session.execute(statements.OTHER_ELECTIONS, {"election": config.election}))
    for other in others:
        if leader_key(replace(config, election=other)) == key:
            yield f"the elections {config.election} and {other} have the same lock key", "rename one of them"


def _queues(patient: Patient) -> Iterator[tuple[str, str]]:
    conf, queue = patient.app.conf, queue_name(patient.config.election)
    if not any(getattr(task, "leader_only", False) for task in patient.app.tasks.values()):
        return
    listed = any(getattr(given, "name", given) == queue for given in conf.task_queues or ())
    if listed:
        yield (
            f"the leader queue {queue} is in task_queues: every worker without --pgleader and -Q consumes it",
            "take it out: the leader declares it",
        )
    elif not conf.task_create_missing_queues:
        yield (
            f"task_create_missing_queues is off: leader-only tasks cannot be sent to {queue}",
            "leave it on, or send them from where it is on",
        )


def _channels(patient: Patient) -> Iterator[tuple[str, str]]:
    for channel, its_routes in routes(patient.app, patient.config.channels).items():
        for route in its_routes:
            if route.queue is None and route.task not in patient.app.tasks:
                yield (
                    f"channel {channel} goes to {route.task}, and this app has no such task",
                    "import its module, see Celery's `include`, or name the queue of the app that has it",
                )


def _broker(patient: Patient) -> Iterator[tuple[str, str]]:
    conf = patient.app.conf
    with patient.app.connection_for_write() as connection:
        if connection.transport.driver_type != "redis":
            return
    given = (conf.broker_transport_options or {}).get("visibility_timeout")
    visibility = DEFAULT_VISIBILITY if given is None else float(given)
    if given is None:
        yield (
            (
                "broker_transport_options has no visibility_timeout: what a killed worker had taken from Redis comes"
                " back after an hour"
            ),
            "set it to a little more than your longest task takes",
        )
    if patient.config.retention < visibility:
        yield (
            (
                f"pgleader_retention is {patient.config.retention:g} s, and the broker's visibility_timeout is"
                f" {visibility:g} s: a message may come again after it was forgotten that its task has ended"
            ),
            "keep pgleader_retention well above it",
        )


def _workers(patient: Patient) -> Iterator[tuple[str, str]]:
    config, overview = patient.config, patient.overview
    known = {node.node for node in overview.nodes}
    for name, told in _ask_workers(patient.app).items():
        if name.startswith(BEAT):
            yield (
                f"a celery beat runs beside the workers: {name}",
                "stop it, or start it with -S pgleader: what it sends, the leader sends as well",
            )
        elif told is None:
            yield (
                f"{name} does not know celery-pgleader",
                "install the package there, too, and start it again: it would run leader-only tasks as any others",
            )
        elif told.get("election", config.election) != config.election:
            yield (
                f"{name} takes part in election {told['election']}, and this app's is {config.election}",
                "give all workers of the app the same pgleader_election, or their leaders send everything twice",
            )
        elif told.get("phase") in LEADING and overview.schema is not None and name not in known:
            yield (
                f"{name} leads an election of this name in another database",
                "give all workers, and this command, the same pgleader_database_url",
            )


def _ask_workers(app: Any) -> dict[str, dict[str, Any] | None]:
    """Return who answers through the broker, with what each says of its part; none where it does not know of any."""
    with app.connection_for_write() as connection:
        if not connection.supports_exchange_type("fanout"):
            return {}
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=ANSWER_TIME)
            told = _broadcast(app, connection, "pgleader")
            present = _broadcast(app, connection, "ping")
        except (OperationalError, OSError, *connection.connection_errors):
            # The broker is away, which the workers' logs say; what can be told without it is told.
            return {}
    return {name: told[name] if _knows(told.get(name)) else None for name in present}


def _broadcast(app: Any, connection: Any, command: str) -> dict[str, Any]:
    answers = app.control.broadcast(command, reply=True, timeout=ANSWER_TIME, connection=connection)
    return {name: answer for answered in answers for name, answer in answered.items()}


def _knows(answer: dict[str, Any] | None) -> bool:
    # Celery answers with a KeyError for a command that a worker does not have.
    return answer is not None and not str(answer.get("error", "")).startswith("KeyError")


def _prefetch(patient: Patient) -> Iterator[tuple[str, str]]:
    multiplier = patient.app.conf.worker_prefetch_multiplier
    if multiplier != 1:
        many = "as many messages as there are" if not multiplier else f"{multiplier} messages for each process"
        yield (
            (
                f"worker_prefetch_multiplier is {multiplier}: a worker takes {many}, and slots wait behind its long"
                " tasks while other workers have nothing to do"
            ),
            "set worker_prefetch_multiplier = 1",
        )


def _schedule(patient: Patient) -> Iterator[tuple[str, str]]:
    app, config = patient.app, patient.config
    try:
        scheduler_class(app.conf.beat_scheduler)
    except (ImportError, AttributeError, ValueError) as error:
        yield f"beat_scheduler = {app.conf.beat_scheduler!r} cannot be imported: {first_line(error)}", "correct it"
    entries = set(app.conf.beat_schedule)
    if patient.overview.schema is not None:
        rows = patient.session.execute(statements.ENTRIES, {"election": config.election})
        entries |= {row[0] for row in rows if row[5] is None}
    if entries:
        for pattern in config.schedule:
            if not any(fnmatchcase(entry, pattern) for entry in entries):
                yield f"pgleader_schedule has a policy for {pattern!r}, and no entry is called so", "correct the name"


EXAMINATIONS: dict[str, Callable[[Patient], Iterator[tuple[str, str]]]] = {
    "server": _server,
    "pooler": _pooler,
    "server settings": _settings,
    "connections": _connections,
    "schema": _schema,
    "clocks": _clocks,
    "nodes": _nodes,
    "lock key": _lock_key,
    "queues": _queues,
    "channels": _channels,
    "broker": _broker,
    "workers": _workers,
    "prefetch": _prefetch,
    "schedule": _schedule,
}
