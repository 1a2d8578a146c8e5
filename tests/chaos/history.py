"""The history of a run: a file with a JSON object a line, appended to by every process that has something to tell."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

Fact = dict[str, Any]


def tell(what: str, **fact: Any) -> None:
    """Append a fact to the file `CHAOS_HISTORY`; it is of now, in monotonic seconds, the same in all processes."""
    # Lines this short are written whole.
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
        self._facts: list[Fact] = []
        self._by_kind: dict[str, list[Fact]] = defaultdict(list)
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
            for line in text.split(b"\n"):
                fact = json.loads(line)
                self._facts.append(fact)
                self._by_kind[fact["what"]].append(fact)
        return self._facts

    def of(self, what: str) -> list[Fact]:
        """Return all facts of a kind, in order."""
        self.catch_up()
        return self._by_kind[what]
