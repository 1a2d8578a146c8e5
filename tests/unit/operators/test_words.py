"""Figures in words."""

from __future__ import annotations

import pytest

from celery_pgleader.operators.words import duration, skew


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0034, "3 ms"), (4.06, "4.1 s"), (60, "1 min"), (3600, "1 h 0 min"), (90_000, "1 d 1 h"), (-1, "0 ms")],
)
def test_duration_has_two_units_at_most(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_negligible_skew_has_no_minus_sign() -> None:
    """A small difference has no sign to wonder about."""
    assert [skew(seconds) for seconds in (-0.03, 0.0, 0.26, -2.0)] == ["+0.0 s", "+0.0 s", "+0.3 s", "-2.0 s"]
