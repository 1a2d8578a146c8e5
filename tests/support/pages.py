"""The examples of a page of the documentation.

A comment in front of a code block names it: `<!-- run: name -->`.
"""

from __future__ import annotations

import re
from pathlib import Path

NAME, FENCE = r"(?:^<!-- run: (?P<name>[\w-]+) -->\n)?", r"^```(?P<language>\w+)\n(?P<code>.*?)^```$"
BLOCK = re.compile(NAME + FENCE, re.MULTILINE | re.DOTALL)


def blocks_of(page: Path) -> dict[str, str]:
    """Return the code of each block of a page; fail if one has no name, or that of another."""
    found = [(block["name"], block["code"]) for block in BLOCK.finditer(page.read_text())]
    names = [name for name, _ in found]
    assert names
    assert None not in names
    assert len(names) == len(set(names))
    return dict(found)
