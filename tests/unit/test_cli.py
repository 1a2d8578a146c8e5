"""How commands read times, and how they show what they have found out."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import click
import pytest

from celery_pgleader.cli import output
from celery_pgleader.cli.times import read_time
from celery_pgleader.operators.words import duration, skew

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
def test_times(text: str, instant: str, exact: timedelta) -> None:
    """Of today, in the app's zone, unless they say otherwise; to the minute, or to the second."""
    assert read_time(text, NOW, BERLIN) == (datetime.fromisoformat(instant), exact)


@pytest.mark.parametrize("text", ["", "soon", "25:00", "2026-13-01"])
def test_what_is_no_time(text: str) -> None:
    """It is refused with an example."""
    with pytest.raises(click.BadParameter, match="is no time such as 10:00"):
        read_time(text, NOW, BERLIN)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0034, "3 ms"), (4.06, "4.1 s"), (60, "1 min"), (3600, "1 h 0 min"), (90_000, "1 d 1 h"), (-1, "0 ms")],
)
def test_durations(seconds: float, words: str) -> None:
    """In as few words as will do."""
    assert duration(seconds) == words


def test_no_clock_is_behind_by_nothing() -> None:
    """A small difference has no sign to wonder about."""
    assert [skew(seconds) for seconds in (-0.03, 0.0, 0.26, -2.0)] == ["+0.0 s", "+0.0 s", "+0.3 s", "-2.0 s"]


def test_a_table_fits_without_colours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a wide terminal, and with what looks like markup."""
    monkeypatch.setenv("COLUMNS", "200")
    output.show_table(("node", "why"), [("[bold]a[/bold]@x", "because " * 20), ("b", None)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["node", "why"]
    assert "[bold]a[/bold]@x" in lines[1]
    output.show_table(("node",), [])
    assert capsys.readouterr().out == ""


def test_paragraphs_are_broken_at_blanks_only(capsys: pytest.CaptureFixture[str]) -> None:
    """So that names stay whole."""
    output.show_text("word " * 14 + "and-a-very-long-name")
    assert capsys.readouterr().out.splitlines()[-1] == "and-a-very-long-name"


def test_json_has_times_in_iso_8601(capsys: pytest.CaptureFixture[str]) -> None:
    """With their zone."""
    output.show_json({"at": NOW})
    assert json.loads(capsys.readouterr().out) == {"at": "2026-11-24T09:30:07+00:00"}
