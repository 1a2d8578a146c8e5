"""The documentation shows what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables
from benchmarks.targets import TARGETS, verdicts

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("page", "table"), [("README.md", tables.short), ("docs/benchmarks.md", tables.full)])
def test_page_shows_the_committed_results(page: str, table: Any) -> None:
    """To the letter: `python -m benchmarks table docs/benchmarks/results.json` writes it."""
    text = (ROOT / page).read_text()
    assert text == tables.replaced(text, table(committed()))


def test_committed_results_have_figures_for_every_target() -> None:
    """But for RabbitMQ, which a machine may lack."""
    told = {verdict.target for verdict in verdicts(committed()["benchmarks"])}
    assert {target for target in TARGETS.keys() - told if "RabbitMQ" not in target} == set()


def test_each_missed_target_has_a_finding() -> None:
    """In words, below the results."""
    findings = (ROOT / "docs" / "benchmarks.md").read_text().partition("## Findings")[2]
    for verdict in verdicts(committed()["benchmarks"]):
        assert verdict.met or f"**{verdict.target}**" in findings, verdict.target


def committed() -> dict[str, Any]:
    """Return the run whose results are in the documentation."""
    found: dict[str, Any] = json.loads((ROOT / "docs" / "benchmarks" / "results.json").read_text())
    return found
