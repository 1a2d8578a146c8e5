"""The history of a run: a file with a JSON object a line, appended to by every process that has something to tell."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Fact = dict[str, Any]


def tell(what: str, **fact: Any) -> None:
    """Append a fact to the file `CHAOS_HISTORY`; lines this short are written whole.

    Args:
        what: its kind.
        fact: what there is to say; `at`, when, in monotonic seconds, the same in all processes, is by default now.

    """
    line = json.dumps({"what": what, "at": time.monotonic(), **fact}, default=str) + "\n"
    fd = os.open(os.environ["CHAOS_HISTORY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


class History:
    """The facts so far, read as they come."""

    def __init__(self, path: Path) -> None:
        """Begin at the beginning."""
        self.facts: list[Fact] = []
        self._path = path
        self._read = 0

    def catch_up(self) -> list[Fact]:
        """Read what is new; return all."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            # A last line may not be whole yet.
            text, _, _ = file.read().rpartition(b"\n")
        if text:
            self._read += len(text) + 1
            self.facts += [json.loads(line) for line in text.split(b"\n")]
        return self.facts

    def of(self, what: str) -> list[Fact]:
        """Return all facts of a kind, in order."""
        return [fact for fact in self.catch_up() if fact["what"] == what]
