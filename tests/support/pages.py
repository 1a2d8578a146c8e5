"""The examples of a page of the documentation.

A comment in front of a code block names it: `<!-- run: name -->`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

NAME, FENCE = r"(?:^<!-- run: (?P<name>[\w-]+) -->\n)?", r"^```(?P<language>\w+)\n(?P<code>.*?)^```$"
BLOCK = re.compile(NAME + FENCE, re.MULTILINE | re.DOTALL)
# As above, also where it stands in a list.
ANY_BLOCK = re.compile(
    NAME + r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
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


def all_blocks(*languages: str) -> list[Block]:
    """Return the blocks of all pages in some languages."""
    return [block for page in PAGES for block in _blocks(page) if block.language in languages]


def blocks_of(page: Path) -> dict[str, str]:
    """Return the code of each block of a page; fail if one has no name, or that of another."""
    found = [(block["name"], block["code"]) for block in BLOCK.finditer(page.read_text())]
    names = [name for name, _ in found]
    assert names
    assert None not in names
    assert len(names) == len(set(names))
    return dict(found)


def named_blocks(page: Path) -> dict[str, str]:
    """Return the code of those blocks of a page that have a name."""
    return {block.name: block.code for block in _blocks(page) if block.name is not None}


def _blocks(page: Path) -> list[Block]:
    return [
        Block(page, found["name"], found["language"], dedent(found["code"]))
        for found in ANY_BLOCK.finditer(page.read_text())
    ]
