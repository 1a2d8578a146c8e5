"""Metrics for Prometheus, computed from the database when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from psycopg.errors import InsufficientPrivilege, UndefinedTable

from celery_pgleader.config import Config
from celery_pgleader.dashboard import sql as statements
from celery_pgleader.operators.overview import Overview, look
from celery_pgleader.postgres import Session

ROLES = ("leader", "successor", "follower", "stands back", "cordoned")

GAUGES = {
    "pgleader_up": "Whether the database could be asked.",
    "pgleader_leader": "1 for the node that leads.",
    "pgleader_term": "The latest term.",
    "pgleader_term_started_timestamp_seconds": "When the latest term began.",
    "pgleader_trust_left_seconds": "For how long the leader may act without a renewal.",
    "pgleader_nodes": "Nodes that are there, by role.",
    "pgleader_node_clock_skew_seconds": "By how much a node's clock is ahead of the database's.",
    "pgleader_entries": "Entries of the schedule.",
    "pgleader_entries_paused": "Entries of the schedule that are paused.",
    "pgleader_schedule_paused": "Whether the schedule is paused.",
    "pgleader_election_held": "Whether the election is held.",
    "pgleader_overdue_seconds": "For how long the oldest slot has been due that is not accounted for.",
    "pgleader_unpublished_seconds": "For how long the oldest slot has been claimed that is not published.",
    "pgleader_notifications_waiting": "Durable notifications that wait for their dispatch.",
    "pgleader_notifications_oldest_seconds": "For how long the oldest of them has waited.",
    "pgleader_dead_letters": "Dead letters, which wait for somebody to decide.",
    "pgleader_schema_version": "Version of the schema.",
}
COUNTERS = {
    "pgleader_terms_ended": "Terms that have ended, by reason.",
    "pgleader_slots": "What became of slots, and why.",
    "pgleader_notifications": "Durable notifications that were dispatched, or became dead letters.",
    "pgleader_leader_only_runs": "Leader-only runs that have begun.",
}
HISTOGRAMS = {
    "pgleader_gap_seconds": "For how long nobody led between two terms; at most, after a failover.",
    "pgleader_lateness_seconds": "How long after their time slots were published.",
    "pgleader_notification_lag_seconds": "How long durable notifications have waited for their dispatch.",
    "pgleader_renewal_seconds": "How long the leader's renewals took.",
}
# As in the migration 0005.
BOUNDS = (
    "0.005",
    "0.01",
    "0.025",
    "0.05",
    "0.1",
    "0.25",
    "0.5",
    "1",
    "2.5",
    "5",
    "10",
    "30",
    "60",
    "300",
    "3600",
    "+Inf",
)


@dataclass(frozen=True)
class Facts:
    """What metrics are made of.

    Attributes:
        overview: of the election.
        counters: what the ledger has counted, by name and label.
        entries: how many the schedule has, and how many of them are paused.
        backlog: how many notifications wait, and seconds for which the oldest has, by channel.
        dead_letters: how many there are, by channel.

    """

    overview: Overview
    counters: Mapping[tuple[str, str], float] = field(default_factory=dict)
    entries: tuple[int, int] = (0, 0)
    backlog: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    dead_letters: Mapping[str, int] = field(default_factory=dict)


def facts(config: Config, session: Session) -> Facts:
    """Ask for what metrics are made of: less where there is no schema, or the role may not see it.

    Raises:
        psycopg.Error: the database could not be asked.

    """
    overview = look(config, session)
    if overview.schema is None:
        return Facts(overview)
    parameters = {"election": config.election}
    try:
        counted = session.execute(statements.COUNTERS, parameters).fetchall()
    except (UndefinedTable, InsufficientPrivilege):
        counted = []
    return Facts(
        overview,
        {(name, label): value for name, label, value in counted},
        session.execute(statements.SCHEDULED, parameters).fetchall()[0],
        {channel: (count, age) for channel, count, age in session.execute(statements.BACKLOG).fetchall()},
        dict(session.execute(statements.DEAD_LETTERS).fetchall()),
    )


def exposition(election: str, found: Facts | None) -> bytes:
    """Return metrics as Prometheus reads them.

    Args:
        election: its name, which is a label of each.
        found: what they are made of; none if the database could not be asked.

    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once([*_metrics(election, found)]))
    return generate_latest(registry)


class _Once:
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _metrics(election: str, found: Facts | None) -> Iterator[Metric]:
    yield _gauge(election, "pgleader_up", [({}, int(found is not None))])
    if found is None:
        return
    yield from _gauges(election, found)
    yield from _counters(election, found.counters)
    yield from _histograms(election, found.counters)


def _gauges(election: str, found: Facts) -> Iterator[Metric]:
    overview = found.overview
    roles = [overview.role_of(node) for node in overview.nodes]
    leader = overview.leading_node
    yield _gauge(election, "pgleader_leader", [({"node": leader}, 1)] if leader is not None else [], ["node"])
    yield _gauge(election, "pgleader_nodes", [({"role": role}, roles.count(role)) for role in ROLES], ["role"])
    yield _gauge(
        election,
        "pgleader_node_clock_skew_seconds",
        # Of several processes with one name, the first.
        [({"node": name}, skew) for name, skew in {n.node: n.clock_skew for n in reversed(overview.nodes)}.items()],
        ["node"],
    )
    if overview.term is not None and overview.since is not None:
        yield _gauge(election, "pgleader_term", [({}, overview.term)])
        yield _gauge(election, "pgleader_term_started_timestamp_seconds", [({}, overview.since.timestamp())])
    if overview.trust_left is not None:
        yield _gauge(election, "pgleader_trust_left_seconds", [({}, max(0.0, overview.trust_left))])
    if overview.schema is None:
        return
    yield _gauge(election, "pgleader_schema_version", [({}, overview.schema)])
    yield _gauge(election, "pgleader_entries", [({}, found.entries[0])])
    yield _gauge(election, "pgleader_entries_paused", [({}, found.entries[1])])
    yield _gauge(election, "pgleader_schedule_paused", [({}, int(overview.paused_at is not None))])
    yield _gauge(election, "pgleader_election_held", [({}, int(overview.held_at is not None))])
    yield _gauge(election, "pgleader_overdue_seconds", [({}, overview.lateness)])
    yield _gauge(election, "pgleader_unpublished_seconds", [({}, overview.unpublished)])
    waiting = found.backlog.items()
    yield _gauge(
        election, "pgleader_notifications_waiting", [({"channel": c}, count) for c, (count, _) in waiting], ["channel"]
    )
    yield _gauge(
        election,
        "pgleader_notifications_oldest_seconds",
        [({"channel": channel}, age) for channel, (_, age) in waiting],
        ["channel"],
    )
    dead = found.dead_letters.items()
    yield _gauge(election, "pgleader_dead_letters", [({"channel": c}, count) for c, count in dead], ["channel"])


def _gauge(
    election: str, name: str, samples: Iterable[tuple[Mapping[str, str], float]], labels: Iterable[str] = ()
) -> Metric:
    names = ["election", *labels]
    family = GaugeMetricFamily(name, GAUGES[name], labels=names)
    for values, value in samples:
        family.add_metric([election, *values.values()], value)
    return family


def _counters(election: str, counters: Mapping[tuple[str, str], float]) -> Iterator[Metric]:
    slots: dict[tuple[str, ...], float] = {
        (name.removeprefix("slots_"), label): value
        for (name, label), value in counters.items()
        if name.startswith("slots_")
    }
    for outcome in ("published", "skipped", "expired"):
        slots.setdefault((outcome, ""), 0)
    yield _counter(election, "pgleader_slots", slots, ("outcome", "reason"))
    yield _counter(election, "pgleader_terms_ended", _labelled(counters, "terms_ended"), ("reason",))
    notifications = {("dispatched",): 0.0, ("dead",): 0.0, **_labelled(counters, "notifications")}
    yield _counter(election, "pgleader_notifications", notifications, ("outcome",))
    runs = counters.get(("leader_only_runs", ""), 0)
    yield _counter(election, "pgleader_leader_only_runs", {(): runs}, ())


def _counter(election: str, name: str, values: Mapping[tuple[str, ...], float], labels: tuple[str, ...]) -> Metric:
    family = CounterMetricFamily(name, COUNTERS[name], labels=["election", *labels])
    for key, value in values.items():
        family.add_metric([election, *key], value)
    return family


def _labelled(counters: Mapping[tuple[str, str], float], wanted: str) -> dict[tuple[str, ...], float]:
    return {(label,): value for (name, label), value in counters.items() if name == wanted}


def _histograms(election: str, counters: Mapping[tuple[str, str], float]) -> Iterator[Metric]:
    gaps = HistogramMetricFamily(
        "pgleader_gap_seconds", HISTOGRAMS["pgleader_gap_seconds"], labels=["election", "change"]
    )
    for change in ("handover", "failover"):
        gaps.add_metric([election, change], *_buckets(counters, f"gap_{change}"))
    yield gaps
    for name, counted in (
        ("pgleader_lateness_seconds", "lateness"),
        ("pgleader_notification_lag_seconds", "lag"),
        ("pgleader_renewal_seconds", "renewal"),
    ):
        family = HistogramMetricFamily(name, HISTOGRAMS[name], labels=["election"])
        family.add_metric([election], *_buckets(counters, counted))
        yield family


def _buckets(counters: Mapping[tuple[str, str], float], name: str) -> tuple[Any, float]:
    """Return the buckets of a histogram, each with what is in those below it, and the sum."""
    so_far = 0.0
    buckets = []
    for bound in BOUNDS:
        so_far += counters.get((name, bound), 0)
        buckets.append((bound, so_far))
    return buckets, counters.get((name, "sum"), 0.0)
