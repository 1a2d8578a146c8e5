"""How commands read times."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import click
import pytest

from celery_pgleader.cli.times import read_time

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 24, 9, 30, 7, tzinfo=timezone.utc)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


@pytest.mark.parametrize(
    ("text", "instant", "exact"),
    [
        ("10:00", "2026-11-24T10:00:00+01:00", MINUTE),
        ("10:00:05", "2026-11-24T10:00:05+01:00", SECOND),
        ("2026-11-23 10:00", "2026-11-23T10:00:00+01:00", MINUTE),
        ("2026-07-23T10:00:00", "2026-07-23T10:00:00+02:00", SECOND),
        ("2026-11-23T10:00+00:00", "2026-11-23T10:00:00+00:00", MINUTE),
    ],
)
def test_time_is_read_in_the_app_zone(text: str, instant: str, exact: timedelta) -> None:
    """Of today, unless it has a date or a zone of its own; exact to the minute, or to the second."""
    assert read_time(text, NOW, BERLIN) == (datetime.fromisoformat(instant), exact)


@pytest.mark.parametrize("text", ["", "soon", "25:00", "2026-13-01"])
def test_unreadable_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no time such as 10:00"):
        read_time(text, NOW, BERLIN)
