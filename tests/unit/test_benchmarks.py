"""What is made of the samples of a benchmark, and that the documentation shows what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables
from benchmarks.curves import Curve
from benchmarks.failover.ticks import Tick, count
from benchmarks.figures import Figure, Results, Samples, quantile, summary
from benchmarks.targets import TARGETS, verdicts

ROOT = Path(__file__).parents[2]
FIGURES = {
    "lock after kill -9": Figure("lock", "kill -9", "ms"),
    "rate": Figure("throughput", "tasks", "/s", lower_is_better=False),
}


def results() -> Results:
    """Return ours, a floor that is ahead, and one that does not come within a bound."""
    made = Results("celery-pgleader", FIGURES)
    made.add("celery-pgleader", "lock after kill -9", 4, 5, 6)
    made.add("celery-pgleader", "rate", 100)
    made.add("floor: waits in pg_advisory_lock", "lock after kill -9", 2)
    made.add("try-lock polling, 0.1 s", "lock after kill -9", 50)
    made.add("slow", "rate", 80)
    made.add_beyond("slow", "lock after kill -9", 12_000)
    made.notes.append("something could not be installed")
    made.about["slow"] = "at its defaults"
    return made


def run() -> dict[str, Any]:
    """Return what a run writes."""
    machine = {"processor": "a fast one", "cores": 2, "memory": "24 GiB", "system": "Linux"}
    return {
        "date": "2026-11-27",
        "quick": True,
        "machine": machine,
        "versions": {"Python": "3.11.7"},
        "benchmarks": {"failover": results().as_json()},
    }


def at(*times: float) -> list[Tick]:
    return [Tick(time) for time in times]


def for_slots(*seconds: int) -> list[Tick]:
    return [Tick(100.0 + place, f"2026-11-27T12:00:{second:02}+00:00") for place, second in enumerate(seconds)]


def test_samples_are_summed_up() -> None:
    """Median, p99, maximum and how many; to four digits."""
    assert summary(Samples([3.0, 1.0, 2.00004])) == {"median": 2.0, "p99": 3.0, "max": 3.0, "n": 3}
    assert summary(Samples([1.0, 2.0]))["median"] == 1.5


def test_what_did_not_come_within_a_bound_is_not_guessed() -> None:
    """A median among such samples is none; one below them is what it is."""
    few = summary(Samples([1.0, 2.0, 3.0], beyond=1, bound=12))
    assert few == {"median": 2.5, "p99": None, "max": None, "n": 4, "beyond": {"bound": 12, "n": 1}}
    assert summary(Samples([1.0], beyond=2, bound=12))["median"] is None


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_quantile(share: float, expected: int) -> None:
    """The sample at or below which that share of all is."""
    assert quantile(range(1, 101), share) == expected


def test_ratios_are_to_ours() -> None:
    """Of medians; what is only known to be beyond a bound is at least so many times as much."""
    assert results().as_json()["ratios"] == {
        "floor: waits in pg_advisory_lock": {"lock after kill -9": {"value": 0.4}},
        "try-lock polling, 0.1 s": {"lock after kill -9": {"value": 10.0}},
        "slow": {"lock after kill -9": {"value": 2400.0, "at_least": True}, "rate": {"value": 0.8}},
    }


@pytest.mark.parametrize(("ours", "theirs"), [(0, 5), (-1, 5), (5, -1)])
def test_nothing_has_a_ratio_to_nothing(ours: float, theirs: float) -> None:
    """Where ours is 0, or was not measured, or where one of the two is negative."""
    made = Results("ours", FIGURES)
    made.add("ours", "rate", ours)
    made.add("theirs", "rate", theirs)
    made.add("theirs", "lock after kill -9", 5)
    assert made.as_json()["ratios"] == {}


@pytest.mark.parametrize(
    ("ticks", "missed", "duplicated"),
    [
        (at(0, 1, 2, 3), 0, 0),
        (at(0, 1.2, 1.9, 3.1), 0, 0),
        (at(0, 1, 4, 5), 2, 0),
        (at(0, 1, 1.1, 2), 0, 1),
        (at(0, 1, 1.1, 4), 2, 1),
        # Three nodes that tick on their own.
        (at(0, 0.3, 0.6, 1, 1.3, 1.6, 2), 0, 4),
        (for_slots(1, 2, 3), 0, 0),
        (for_slots(1, 2, 6), 3, 0),
        # Made up for in a burst, and out of order.
        (for_slots(1, 4, 2, 3, 5), 0, 0),
        (for_slots(1, 2, 2, 3), 0, 1),
    ],
)
def test_ticks_are_counted(ticks: list[Tick], missed: int, duplicated: int) -> None:
    """By slots where there are such, and by times."""
    assert count(ticks, 1.0) == (missed, duplicated)


def test_a_table_has_ours_first_and_says_who_is_ahead() -> None:
    """With p99 and maximum where there is more than one sample, and the ratio."""
    lines = tables.benchmark(results().as_json()).splitlines()
    assert lines[0] == "| lock | kill -9, ms |"
    assert lines[2] == "| celery-pgleader | 5 / 6 / 6 (3) |"
    assert lines[3] == "| floor: waits in pg_advisory_lock | **2** (1), 0.4 x |"
    assert "| slow | > 12,000 (1), > 2,400 x |" in lines
    assert "| slow | 80.0 (1), 0.8 x |" in lines
    assert lines[-2:] == ["- slow: at its defaults.", "- something could not be installed."]


def test_what_another_is_ahead_in_is_listed() -> None:
    """All of it; in README's table it is bold."""
    listed = tables.full(run()).partition("## Where another is ahead\n\n")[2]
    expected = "- failover, lock after kill -9: floor: waits in pg_advisory_lock (2 ms); celery-pgleader has 5 ms."
    assert listed == expected
    assert "| **2 ms** floor: waits in pg_advisory_lock; 50.0 ms try-lock" in tables.short(run())


def test_the_tables_say_where_and_with_what() -> None:
    """And when."""
    assert tables.provenance(run()) == (
        "Measured 2026-11-27, `--quick`, on a fast one, 2 cores, 24 GiB, Linux, with Python 3.11.7."
    )


def test_a_block_is_replaced_between_its_markers() -> None:
    """And nothing else is, however often."""
    page = f"before\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n"
    once = tables.replaced(page, "new\n")
    assert once == f"before\n\n{tables.BEGIN}\n\nnew\n\n{tables.END}\n\nafter\n"
    assert tables.replaced(once, "new") == once


def test_a_run_tells_of_the_targets_that_it_has_figures_for() -> None:
    """Met or missed, with what was measured."""
    found = {verdict.target: (verdict.measured, verdict.met) for verdict in verdicts(run()["benchmarks"])}
    assert found == {
        "after kill -9, the next leader within 3 times the floor": ("5.0 ms to 2.0 ms: 2.5 times", True),
        "after kill -9, quicker than try-lock polling at 0.1 s": ("5.0 ms to 50.0 ms", True),
    }


def test_a_target_is_missed_by_a_tick() -> None:
    """Or by more than can be counted."""
    made = Results("celery-pgleader", {f"missed after {fault}": Figure("missed", fault) for fault in FAULTS})
    for fault in FAULTS[:-1]:
        made.add("celery-pgleader", f"missed after {fault}", 0, 0)
    made.add("celery-pgleader", "missed after SIGSTOP", 4)
    made.add_beyond("celery-pgleader", "missed after server restart", 12)
    (verdict,) = verdicts({"failover": made.as_json()})
    assert (verdict.measured, verdict.met) == ("4 after SIGSTOP, 12 after server restart", False)


FAULTS = ("TERM", "kill -9", "SIGSTOP", "session ended", "server restart")


def test_a_curve_needs_two_points() -> None:
    """Of contenders that have fewer, none is drawn."""
    made = Results("ours", {f"failover, {n} followers": Figure("failover", f"{n}", "ms") for n in (2, 10)})
    made.add("ours", "failover, 2 followers", 5, 7)
    made.add("ours", "failover, 10 followers", 6)
    made.add("theirs", "failover, 10 followers", 60)
    curve = Curve("followers", "Failover", "growth", "failover, {} followers", ("2", "10"), "followers", "ms")
    assert curve.points({"growth": made.as_json()}) == {"ours": [(2.0, 6.0, 7.0), (10.0, 6.0, 6.0)]}
    assert not curve.is_in({"growth": Results("ours", {}).as_json()})


@pytest.mark.parametrize(("page", "table"), [("README.md", tables.short), ("docs/benchmarks.md", tables.full)])
def test_the_documentation_shows_what_was_measured(page: str, table: Any) -> None:
    """To the letter: `python -m benchmarks table docs/benchmarks/results.json` writes it."""
    text = (ROOT / page).read_text()
    assert text == tables.replaced(text, table(committed()))


def test_what_was_measured_tells_of_every_target() -> None:
    """But for RabbitMQ, which a machine may lack."""
    told = {verdict.target for verdict in verdicts(committed()["benchmarks"])}
    assert {target for target in TARGETS.keys() - told if "RabbitMQ" not in target} == set()


def test_each_target_missed_has_a_finding() -> None:
    """In words, below the results."""
    findings = (ROOT / "docs" / "benchmarks.md").read_text().partition("## Findings")[2]
    for verdict in verdicts(committed()["benchmarks"]):
        assert verdict.met or f"**{verdict.target}**" in findings, verdict.target


def committed() -> dict[str, Any]:
    """Return the run whose results are in the documentation."""
    found: dict[str, Any] = json.loads((ROOT / "docs" / "benchmarks" / "results.json").read_text())
    return found
