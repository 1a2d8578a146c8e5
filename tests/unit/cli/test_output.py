"""How commands show what they have found out."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest

from celery_pgleader.cli import output

NOW = datetime(2026, 11, 24, 9, 30, 7, tzinfo=timezone.utc)


def test_table_fits_into_80_columns_without_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a wide terminal, and with names that look like markup; without rows nothing is printed."""
    monkeypatch.setenv("COLUMNS", "200")
    output.show_table(("node", "why"), [("[bold]a[/bold]@x", "because " * 20), ("b", None)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["node", "why"]
    assert "[bold]a[/bold]@x" in lines[1]
    output.show_table(("node",), [])
    assert capsys.readouterr().out == ""


def test_paragraph_is_broken_at_blanks_only(capsys: pytest.CaptureFixture[str]) -> None:
    """So that names stay whole."""
    output.show_text("word " * 14 + "and-a-very-long-name")
    assert capsys.readouterr().out.splitlines()[-1] == "and-a-very-long-name"


def test_json_has_times_in_iso_8601_with_their_zone(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_json({"at": NOW})
    assert json.loads(capsys.readouterr().out) == {"at": "2026-11-24T09:30:07+00:00"}
