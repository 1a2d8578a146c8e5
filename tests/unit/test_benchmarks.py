"""What is made of the samples of a benchmark."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import tables
from benchmarks.curves import Curve
from benchmarks.failover.ticks import Tick, count
from benchmarks.figures import Figure, Results, Samples, quantile, summary
from benchmarks.targets import verdicts

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


def test_summary_has_median_p99_maximum_and_count() -> None:
    """To four digits."""
    assert summary(Samples([3.0, 1.0, 2.00004])) == {"median": 2.0, "p99": 3.0, "max": 3.0, "n": 3}
    assert summary(Samples([1.0, 2.0]))["median"] == 1.5


def test_samples_beyond_the_bound_are_not_guessed() -> None:
    """A median among such samples is none; one below them is what it is."""
    few = summary(Samples([1.0, 2.0, 3.0], beyond=1, bound=12))
    assert few == {"median": 2.5, "p99": None, "max": None, "n": 4, "beyond": {"bound": 12, "n": 1}}
    assert summary(Samples([1.0], beyond=2, bound=12))["median"] is None


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_quantile_is_the_sample_at_or_above_its_share(share: float, expected: int) -> None:
    assert quantile(range(1, 101), share) == expected


def test_ratios_are_those_of_medians_to_ours() -> None:
    """What is only known to be beyond a bound is at least so many times as much."""
    assert results().as_json()["ratios"] == {
        "floor: waits in pg_advisory_lock": {"lock after kill -9": {"value": 0.4}},
        "try-lock polling, 0.1 s": {"lock after kill -9": {"value": 10.0}},
        "slow": {"lock after kill -9": {"value": 2400.0, "at_least": True}, "rate": {"value": 0.8}},
    }


@pytest.mark.parametrize(("ours", "theirs"), [(0, 5), (-1, 5), (5, -1)])
def test_figure_of_zero_or_less_has_no_ratio(ours: float, theirs: float) -> None:
    """Nor has one that was not measured."""
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
def test_missed_and_duplicated_ticks_are_counted(ticks: list[Tick], missed: int, duplicated: int) -> None:
    """By slots where there are such, and by times."""
    assert count(ticks, 1.0) == (missed, duplicated)


def test_table_has_ours_first_and_the_best_in_bold() -> None:
    """With p99 and maximum where there is more than one sample, and the ratio."""
    lines = tables.benchmark(results().as_json()).splitlines()
    assert lines[0] == "| lock | kill -9, ms |"
    assert lines[2] == "| celery-pgleader | 5 / 6 / 6 (3) |"
    assert lines[3] == "| floor: waits in pg_advisory_lock | **2** (1), 0.4 x |"
    assert "| slow | > 12,000 (1), > 2,400 x |" in lines
    assert "| slow | 80.0 (1), 0.8 x |" in lines
    assert lines[-2:] == ["- slow: at its defaults.", "- something could not be installed."]


def test_figures_in_which_another_is_ahead_are_listed() -> None:
    """In README's table they are bold."""
    listed = tables.full(run()).partition("## Where another is ahead\n\n")[2]
    expected = "- failover, lock after kill -9: floor: waits in pg_advisory_lock (2 ms); celery-pgleader has 5 ms."
    assert listed == expected
    assert "| **2 ms** floor: waits in pg_advisory_lock; 50.0 ms try-lock" in tables.short(run())


def test_provenance_names_date_machine_and_versions() -> None:
    assert tables.provenance(run()) == (
        "Measured 2026-11-27, `--quick`, on a fast one, 2 cores, 24 GiB, Linux, with Python 3.11.7."
    )


def test_only_the_block_between_its_markers_is_replaced() -> None:
    """However often."""
    page = f"before\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n"
    once = tables.replaced(page, "new\n")
    assert once == f"before\n\n{tables.BEGIN}\n\nnew\n\n{tables.END}\n\nafter\n"
    assert tables.replaced(once, "new") == once


def test_run_has_verdicts_on_targets_with_figures() -> None:
    """Met or missed, with what was measured."""
    found = {verdict.target: (verdict.measured, verdict.met) for verdict in verdicts(run()["benchmarks"])}
    assert found == {
        "after kill -9, the next leader within 3 times the floor": ("5.0 ms to 2.0 ms: 2.5 times", True),
        "after kill -9, quicker than try-lock polling at 0.1 s": ("5.0 ms to 50.0 ms", True),
    }


def test_one_missed_tick_misses_the_target() -> None:
    """So do more than can be counted."""
    made = Results("celery-pgleader", {f"missed after {fault}": Figure("missed", fault) for fault in FAULTS})
    for fault in FAULTS[:-1]:
        made.add("celery-pgleader", f"missed after {fault}", 0, 0)
    made.add("celery-pgleader", "missed after SIGSTOP", 4)
    made.add_beyond("celery-pgleader", "missed after server restart", 12)
    (verdict,) = verdicts({"failover": made.as_json()})
    assert (verdict.measured, verdict.met) == ("4 after SIGSTOP, 12 after server restart", False)


FAULTS = ("TERM", "kill -9", "SIGSTOP", "session ended", "server restart")


def test_curve_needs_two_points() -> None:
    """Of contenders that have fewer, none is drawn."""
    made = Results("ours", {f"failover, {n} followers": Figure("failover", f"{n}", "ms") for n in (2, 10)})
    made.add("ours", "failover, 2 followers", 5, 7)
    made.add("ours", "failover, 10 followers", 6)
    made.add("theirs", "failover, 10 followers", 60)
    curve = Curve("followers", "Failover", "growth", "failover, {} followers", ("2", "10"), "followers", "ms")
    assert curve.points({"growth": made.as_json()}) == {"ours": [(2.0, 6.0, 7.0), (10.0, 6.0, 6.0)]}
    assert not curve.is_in({"growth": Results("ours", {}).as_json()})
