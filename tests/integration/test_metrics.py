"""Metrics, computed from a real database, as Prometheus' own parser reads them."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql
from psycopg.conninfo import make_conninfo

from celery_pgleader.config import Config
from celery_pgleader.dashboard.metrics import BOUNDS, COUNTERS, GAUGES, HISTOGRAMS, exposition, facts
from celery_pgleader.election import Term
from celery_pgleader.operators import orders
from celery_pgleader.postgres import open_session
from celery_pgleader.store import EntryRecord, Ledger, Mailbox, Outcome, SlotRow
from celery_pgleader.store import sql as statements
from celery_pgleader.store.orders import Orders
from celery_pgleader.worker import tally
from tests.support.dashboard import MANY, MANY_NODES, Leading, execute

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
NOON = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)
ENTRY = EntryRecord("proj.tick", "every 1 s", NOON, NOON)


class Scraped(Leading):
    """An election, and what is scraped of it."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        """Begin without a leader."""
        super().__init__(url, stack, "shop")
        self.stack = stack
        self.session = stack.enter_context(open_session(url, "pgleader test", unresponsive_after=5))

    def ledger(self, term: Term) -> Ledger:
        """Open a leader's ledger."""
        ledger = Ledger(self.config, term, lambda: True)
        self.stack.callback(ledger.close)
        return ledger

    def scrape(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Return each sample's value, by its name and the values of its labels."""
        text = exposition("shop", facts(self.config, self.session)).decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = dict(sample.labels)
                assert labels.pop("election") == "shop"
                found[sample.name, tuple(labels.values())] = sample.value
        return found

    def of(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the samples of one name."""
        return {labels: value for (known, labels), value in self.scrape().items() if known == name}


@pytest.fixture
def scraped(database: str) -> Iterator[Scraped]:
    """Give an election."""
    with ExitStack() as stack:
        yield Scraped(database, stack)


def claimed(entry: str, slot: datetime) -> SlotRow:
    return SlotRow(entry, slot, slot, 1, "claimed", None, str(uuid.uuid4()))


def left_out(entry: str, slot: datetime, count: int, state: str, reason: str) -> SlotRow:
    return SlotRow(entry, slot, slot + timedelta(seconds=count - 1), count, state, reason, None)


def test_metrics_name_the_leader(scraped: Scraped) -> None:
    """And since when, in which term, and who else is there."""
    assert scraped.of("pgleader_leader") == {}
    began = time.time()
    _, term = scraped.lead("celery@a")
    found = scraped.scrape()
    assert found["pgleader_up", ()] == 1
    assert found["pgleader_leader", ("celery@a",)] == 1
    assert found["pgleader_term", ()] == term.number
    assert began - 1 < found["pgleader_term_started_timestamp_seconds", ()] < time.time() + 1
    assert 0 < found["pgleader_trust_left_seconds", ()] <= scraped.config.trust_window
    assert scraped.of("pgleader_nodes") == {
        ("leader",): 1,
        ("successor",): 0,
        ("follower",): 0,
        ("stands back",): 0,
        ("cordoned",): 0,
    }
    assert abs(found["pgleader_node_clock_skew_seconds", ("celery@a",)]) < 1
    assert found["pgleader_schema_version", ()] == 5


def test_changes_of_leadership_are_counted(scraped: Scraped) -> None:
    """By reason, with how long nobody led: exactly after a handover, and at most after a failover."""
    first, term = scraped.lead("celery@a")
    first.release("handed over to celery@b")
    first.close()
    second, _ = scraped.lead("celery@b")
    second.close()
    third, _ = scraped.lead("celery@c")
    third.release("FATAL: some words of the server")
    assert scraped.of("pgleader_terms_ended_total") == {("handed over",): 1, ("lost",): 1, ("other",): 1}
    assert scraped.of("pgleader_gap_seconds_count") == {("handover",): 1, ("failover",): 1}
    assert 0 < scraped.of("pgleader_gap_seconds_sum")["handover",] < 5
    # What a leader said last of itself is what the gap is counted from.
    fourth, term = scraped.lead("celery@d")
    scraped.session.execute("update pgleader.terms set gained_at = now() - interval '1 hour' where term = 4")
    steward = Orders(scraped.config, term, {"entries": None})
    scraped.stack.callback(steward.close)
    steward.report({})
    fourth.close()
    scraped.lead("celery@e")
    assert scraped.of("pgleader_gap_seconds_count")["failover",] == 2
    assert scraped.of("pgleader_gap_seconds_sum")["failover",] < 60


def test_slots_are_counted_by_what_became_of_them(scraped: Scraped) -> None:
    """Whoever writes it down, and the number of slots rather than of rows."""
    _, term = scraped.lead("celery@a")
    ledger = scraped.ledger(term)
    ledger.register({"tick": ENTRY, "tock": ENTRY})
    slots = [NOON + timedelta(seconds=second) for second in range(1, 61)]
    ledger.claim(
        [
            left_out("tick", slots[0], 10, "expired", "misfire_grace"),
            left_out("tick", slots[10], 20, "skipped", "coalesced"),
            claimed("tick", slots[30]),
            claimed("tock", slots[30]),
            claimed("tock", slots[31]),
        ]
    )
    ledger.settle(
        [
            Outcome("tick", slots[30], "published"),
            Outcome("tock", slots[30], "published"),
            Outcome("tock", slots[31], "skipped", "cannot be sent: ValueError: no"),
        ]
    )
    # It is settled already.
    ledger.settle([Outcome("tick", slots[30], "published")])
    worker = {"election": "shop", "entry": "tock", "slot": slots[30], "reason": "overlap"}
    scraped.session.execute(statements.SKIP, worker)
    expected = {
        ("published", ""): 2,
        ("skipped", ""): 0,
        ("skipped", "coalesced"): 20,
        ("skipped", "cannot be sent"): 1,
        ("skipped", "overlap"): 1,
        ("expired", ""): 0,
        ("expired", "misfire_grace"): 10,
    }
    assert scraped.of("pgleader_slots_total") == expected
    # These slots are old: of a day that has passed, or is to come.
    assert scraped.of("pgleader_lateness_seconds_count") == {(): 2}
    # What is forgotten stays counted.
    scraped.session.execute("delete from pgleader.slots")
    assert scraped.of("pgleader_slots_total") == expected


def test_lateness_is_counted_in_buckets(scraped: Scraped) -> None:
    """Each slot in one, and a run that somebody asked for in none."""
    _, term = scraped.lead("celery@a")
    ledger = scraped.ledger(term)
    now = datetime.now(timezone.utc)
    ledger.register({"tick": EntryRecord("proj.tick", "every 1 s", now - timedelta(days=1), now - timedelta(days=1))})
    due = [now - timedelta(seconds=seconds) for seconds in (7, 0.2)]
    ledger.claim([claimed("tick", slot) for slot in due])
    ledger.settle([Outcome("tick", slot, "published") for slot in due])
    buckets = scraped.of("pgleader_lateness_seconds_bucket")
    assert (buckets["0.1",], buckets["5",], buckets["10",], buckets["+Inf",]) == (0, 1, 2, 2)
    assert 7.2 < scraped.of("pgleader_lateness_seconds_sum")[()] < 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orders, "PUBLISHED_WITHIN", 0)
        done = orders.run_now(scraped.config, scraped.session, "tick")
    assert scraped.of("pgleader_unpublished_seconds")[()] > 0
    ledger.settle([Outcome("tick", done.facts["slot"], "published")])
    assert scraped.of("pgleader_lateness_seconds_count")[()] == 2
    assert scraped.of("pgleader_slots_total")["published", "run-now"] == 1


def test_notifications_are_counted(scraped: Scraped) -> None:
    """What waits, and what was done; of dead letters, both how many there were and how many there are."""
    _, term = scraped.lead("celery@a")
    for number in range(5):
        scraped.session.execute("select pgleader.notify('orders', to_jsonb(%s::int))", [number])
    found = scraped.scrape()
    assert found["pgleader_notifications_waiting", ("orders",)] == 5
    assert 0 <= found["pgleader_notifications_oldest_seconds", ("orders",)] < 60
    mailbox = Mailbox(scraped.config, term, ["orders"], lambda: True)
    scraped.stack.callback(mailbox.close)
    letters, _ = mailbox.waiting()
    mailbox.bury(letters[0], "no such task")
    mailbox.dispatched(letters[1:4])
    found = scraped.scrape()
    assert scraped.of("pgleader_notifications_total") == {("dispatched",): 3, ("dead",): 1}
    assert found["pgleader_notifications_waiting", ("orders",)] == 1
    assert found["pgleader_dead_letters", ("orders",)] == 1
    assert found["pgleader_notification_lag_seconds_count", ()] == 3


def test_leader_reports_its_renewals_and_runs(scraped: Scraped) -> None:
    """Its renewals and its leader-only runs, each once."""
    _, term = scraped.lead("celery@a")
    steward = Orders(scraped.config, term, {"entries": None})
    scraped.stack.callback(steward.close)
    mine = tally.Tally(lambda: 4)
    for seconds in (0.001, 0.005, 0.3):
        mine.renewed(seconds)
    steward.report(mine.totals())
    steward.report({("leader_only_runs", ""): 2})
    found = scraped.scrape()
    assert found["pgleader_leader_only_runs_total", ()] == 6
    assert found["pgleader_renewal_seconds_count", ()] == 3
    assert found["pgleader_renewal_seconds_bucket", ("0.005",)] == 2
    assert abs(found["pgleader_renewal_seconds_sum", ()] - 0.306) < 1e-9
    # A term that is over reports no more.
    scraped.session.execute("update pgleader.terms set ended_at = now(), reason = 'lost'")
    steward.report({("leader_only_runs", ""): 2})
    assert scraped.scrape()["pgleader_leader_only_runs_total", ()] == 6


def test_buckets_are_the_same_everywhere(scraped: Scraped) -> None:
    """In the migration, in the worker and in what is shown."""
    assert tally.LABELS == BOUNDS
    for bound in BOUNDS[:-1]:
        assert scraped.session.execute("select pgleader.bucket(%s)", [float(bound)]).fetchone() == (bound,)
    assert scraped.session.execute("select pgleader.bucket(3600.1)").fetchone() == ("+Inf",)


def test_role_without_new_grants_goes_on(scraped: Scraped, database: str) -> None:
    """Workers of an older version, whose role knows nothing of what is counted, claim and settle as before."""
    _, term = scraped.lead("celery@a")
    role = sql.Identifier(f"old_{uuid.uuid4().hex[:8]}")
    scraped.session.execute(sql.SQL("create role {} login").format(role))
    try:
        for grant in ("usage on schema pgleader", "select, insert, update, delete on all tables in schema pgleader"):
            scraped.session.execute(sql.SQL("grant {} to {}").format(sql.SQL(grant), role))
        scraped.session.execute(sql.SQL("revoke all on pgleader.counters from {}").format(role))
        config = SimpleNamespace(
            database_url=make_conninfo(database, user=role.as_string().strip('"')), election="shop", ttl=2
        )
        ledger = Ledger(config, term, lambda: True)  # type: ignore[arg-type]  # as much of one as it needs
        slot = NOON + timedelta(seconds=1)
        ledger.register({"tick": ENTRY})
        ledger.claim([claimed("tick", slot)])
        ledger.settle([Outcome("tick", slot, "published")])
        ledger.close()
        assert scraped.of("pgleader_slots_total")["published", ""] == 1
    finally:
        scraped.session.execute(sql.SQL("drop owned by {}").format(role))
        scraped.session.execute(sql.SQL("drop role {}").format(role))


def test_metrics_need_no_schema(empty_database: str) -> None:
    """What can be told without is."""
    with open_session(empty_database, "pgleader test", unresponsive_after=5) as session:
        found = exposition("shop", facts(Config(database_url=empty_database, election="shop"), session)).decode()
    assert 'pgleader_up{election="shop"} 1.0' in found
    assert "pgleader_entries{" not in found
    away = exposition("shop", None).decode()
    assert 'pgleader_up{election="shop"} 0.0' in away
    assert away.count("\npgleader_") == 1


def known() -> set[str]:
    """Return the names of all samples."""
    suffixes = ("_bucket", "_sum", "_count")
    histograms = {f"{name}{suffix}" for name in HISTOGRAMS for suffix in suffixes}
    return {*GAUGES, *(f"{name}_total" for name in COUNTERS), *histograms}


def test_every_metric_is_exposed(scraped: Scraped) -> None:
    """Under the name that is documented; and none that is not."""
    scraped.lead("celery@a")
    shown = {
        family.name
        for family in text_string_to_metric_families(
            exposition("shop", facts(scraped.config, scraped.session)).decode()
        )
    }
    assert shown == {*GAUGES, *COUNTERS, *HISTOGRAMS}
    page = (MONITORING.parent / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(pgleader_\w+)", page, re.MULTILINE))
    assert documented == {*GAUGES, *(f"{name}_total" for name in COUNTERS), *HISTOGRAMS}


def named(expression: str) -> set[str]:
    """Return the metrics that an expression refers to."""
    return set(re.findall(r"\bpgleader_\w+", expression))


def test_alerts_refer_to_metrics_that_exist() -> None:
    """And each says what to do."""
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules
    for rule in rules:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}, rule
        assert named(rule["expr"]), rule
        assert named(rule["expr"]) <= known(), rule
        assert rule["annotations"].keys() == {"summary", "description"}, rule


def expressions(panel: Any) -> Iterator[str]:
    """Give the expressions of a panel of Grafana's, and of those in it."""
    for target in panel.get("targets", []):
        yield target["expr"]
    for inner in panel.get("panels", []):
        yield from expressions(inner)


def test_the_grafana_dashboard_refers_to_metrics_that_exist() -> None:
    """In each panel, of which none lies on another."""
    board = json.loads((MONITORING / "grafana.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert [*expressions(panel)], panel["title"]
    shown = {name for panel in board["panels"] for expression in expressions(panel) for name in named(expression)}
    assert shown <= known()
    variables = {query for variable in board["templating"]["list"] for query in named(str(variable.get("query", "")))}
    assert variables <= known()


@pytest.mark.parametrize("slots", [100, pytest.param(1000, marks=pytest.mark.long)])
def test_scrape_of_many_slots_takes_little_longer(scraped: Scraped, slots: int) -> None:
    """It takes little longer than that of an empty ledger. There are so many slots of each of a thousand entries."""
    scraped.lead("celery@a")
    before = quickest_scrape(scraped)
    many = [statement.replace("(0, 999)", f"(0, {slots - 1})") for statement in MANY]
    execute(scraped.config.database_url, *many, MANY_NODES)
    scraped.scrape()
    after = quickest_scrape(scraped)
    print(f"a scrape takes {after * 1000:.1f} ms, and {before * 1000:.1f} ms without slots")
    # Thousands of times what is there.
    assert after < 10 * before


def quickest_scrape(scraped: Scraped) -> float:
    """Return how many seconds a scrape takes; of many, since others use the machine, too."""
    took = []
    for _ in range(40):
        began = time.perf_counter()
        exposition("shop", facts(scraped.config, scraped.session))
        took.append(time.perf_counter() - began)
    return min(took)
