"""The examples of a page of the documentation.

A comment in front of a code block names it: `<!-- run: name -->`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

BLOCK = re.compile(
    r"(?:^<!-- run: (?P<name>[\w-]+) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "example_app/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: the file in which it stands.
        name: of the block, if a test of its own runs it.
        language: what it says that it is.
        code: the code.

    """

    page: Path
    name: str | None
    language: str
    code: str

    def __str__(self) -> str:
        """Return what a test that concerns it is called by."""
        return f"{self.page.relative_to(ROOT)}: {self.name or self.code.splitlines()[0][:40]}"


def blocks_in(page: Path) -> list[Block]:
    """Return the blocks of a page, in a list of it or not."""
    return [
        Block(page, found["name"], found["language"], dedent(found["code"]))
        for found in BLOCK.finditer(page.read_text())
    ]


def all_blocks(*languages: str) -> list[Block]:
    """Return the blocks of all pages in some languages."""
    return [block for page in PAGES for block in blocks_in(page) if block.language in languages]


def named_blocks(page: Path) -> dict[str, str]:
    """Return the code of those blocks of a page that have a name; fail if two have the same."""
    found = [(block.name, block.code) for block in blocks_in(page) if block.name is not None]
    assert len(dict(found)) == len(found), page
    return dict(found)


def blocks_of(page: Path) -> dict[str, str]:
    """Return the code of each block of a page; fail if one has no name."""
    named = named_blocks(page)
    assert len(named) == len(blocks_in(page)) > 0, page
    return named
