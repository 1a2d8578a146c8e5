"""What a process that leads again and again must not gather: sessions, threads, files and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


def lead(changes: int, looks: int, database: str, valkey: str, folder: Path) -> list[SimpleNamespace]:
    """Have the lead change in a process in which nothing else gathers anything; return what it has had at looks."""
    command = [sys.executable, "-m", "tests.support.trio", database, valkey, str(folder), str(changes), str(looks)]
    # Not measured: coverage keeps something for each thread that there was.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    written = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    seen = [SimpleNamespace(**json.loads(line)) for line in written.splitlines()]

    assert len(seen) == looks
    # What is made once and kept is there by then.
    first, *later = seen[1:]
    for look in later:
        assert look.threads == first.threads, seen
        # Connections to the broker, and files of schedules, come and go.
        assert look.files <= first.files + 10, seen
        # The leader's, two places, that of a relay that sleeps, and one that it tries.
        assert look.locks <= 5, seen
    return later


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_changes_of_leadership_leave_no_thread_file_or_lock(database: str, valkey: str, tmp_path: Path) -> None:
    """With the beat, ledger, listener and relay of each."""
    lead(60, 6, database, valkey, tmp_path)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_thousand_changes_of_leadership_leave_no_memory(database: str, valkey: str, tmp_path: Path) -> None:
    """Nor a thread, a file or a lock."""
    # So many looks that the best of half of them is a good one. A single one has some two hundred objects more or less,
    # and one for each change is to stand out.
    number, looks = 1000, 20
    later = lead(number, looks, database, valkey, tmp_path)
    # What threads are in the middle of comes and goes; what is gathered is there at the best of looks, too.
    early, late = later[: len(later) // 2], later[len(later) // 2 :]
    changes = len(early) * (number // looks)
    # Less than one for each change; less than what a connection of libpq takes.
    assert min(look.objects for look in late) - min(look.objects for look in early) < changes, later
    assert min(look.kilobytes for look in late) - min(look.kilobytes for look in early) < changes * 10, later
