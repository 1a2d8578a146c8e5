"""How commands show what they have found out: as JSON, or in lines and tables that fit 80 columns."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 80


def show_json(facts: Any) -> None:
    """Print facts as JSON; times are in ISO 8601."""
    click.echo(json.dumps(facts, indent=2, default=_plain))


def say(facts: Any, words: str, *, as_json: bool) -> None:
    """Print what was done: as JSON, or in words."""
    if as_json:
        show_json(facts)
    else:
        click.echo(words)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, or nothing if it has no rows; what is too long for its column goes on in the next line."""
    rows = list(rows)
    if not rows:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console = Console(highlight=False)
    console.width = min(WIDTH, console.width)
    with console.capture() as captured:
        console.print(table)
    # Cells are padded to the width of their column.
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def show_text(text: str) -> None:
    """Print a paragraph."""
    click.echo(wrapped(text))


def wrapped(text: str, first: str = "", others: str = "") -> str:
    """Return a paragraph in lines that fit, broken at blanks only.

    Args:
        text: the paragraph.
        first: what its first line begins with.
        others: what all others begin with.

    """
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_on_hyphens=False,
        break_long_words=False,
    )


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print facts, one a line, each after its name."""
    for name, fact in facts:
        click.echo(wrapped(fact, f"{name:<10} ", " " * 11))


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
