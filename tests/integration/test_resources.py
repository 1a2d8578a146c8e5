"""What a process that leads again and again must not gather: sessions, threads, files and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

CHANGES = 1000
# How often all that leads is waited for, and looked at: so often that the best of half of the looks is a good one. A
# single one has some two hundred objects more or less, and one for each change is to stand out.
LOOKS = 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thousand_leaderships_leave_nothing_behind(database: str, valkey: str, tmp_path: Path) -> None:
    """With the beat, ledger, listener and relay of each; in a process in which nothing else gathers anything."""
    command = [sys.executable, "-m", "tests.support.trio", database, valkey, str(tmp_path), str(CHANGES), str(LOOKS)]
    # Not measured: coverage keeps something for each thread that there was.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    written = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    seen = [SimpleNamespace(**json.loads(line)) for line in written.splitlines()]

    assert len(seen) == LOOKS
    # What is made once and kept is there by then.
    first, *later = seen[1:]
    for look in later:
        assert look.threads == first.threads, seen
        # Connections to the broker, and files of schedules, come and go.
        assert look.files <= first.files + 10, seen
        # The leader's, two places, that of a relay that sleeps, and one that it tries.
        assert look.locks <= 5, seen
    # What threads are in the middle of comes and goes; what is gathered is there at the best of looks, too.
    early, late = later[: len(later) // 2], later[len(later) // 2 :]
    changes = len(early) * (CHANGES // LOOKS)
    # Less than one for each change; less than what a connection of libpq takes.
    assert min(look.objects for look in late) - min(look.objects for look in early) < changes, seen
    assert min(look.kilobytes for look in late) - min(look.kilobytes for look in early) < changes * 10, seen
