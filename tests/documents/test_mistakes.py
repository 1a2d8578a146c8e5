"""The ten commonest mistakes: each is told in words that say what to do, and has tests of its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MISTAKES = {
    1: "no URL",
    2: "a wrong URL",
    3: "no rights",
    4: "the wrong app",
    5: "`-B` left in",
    6: "beat left running",
    7: "two elections by accident",
    8: "the package missing on one worker",
    9: "Postgres too old",
    10: "a pooler in between",
}


def named() -> set[int]:
    """Return the numbers of the mistakes after which a test is named."""
    texts = (file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    return {int(number) for text in texts for number in re.findall(r"^def test_mistake_(\d+)_", text, re.MULTILINE)}


def test_list_of_mistakes_is_complete() -> None:
    """Ten of them, and no test is named after another."""
    assert list(MISTAKES) == list(range(1, 11))
    assert named() <= set(MISTAKES)


@pytest.mark.parametrize("number", MISTAKES)
def test_every_mistake_has_a_test(number: int) -> None:
    assert number in named(), MISTAKES[number]


def test_every_mistake_is_a_heading_on_troubleshooting() -> None:
    """In this order."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    section = text.partition("## The ten commonest mistakes\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### \d+\. (.+)$", section, re.MULTILINE) == [
        mistake[0].upper() + mistake[1:] for mistake in MISTAKES.values()
    ]
